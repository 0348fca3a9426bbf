# `make quickstart` and `make test` need nothing but Python >= 3.11 and make: the environment is made
# in .venv on first use, by uv when it is there and else by venv and pip.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: quickstart test test-tpu results lint lock clean

quickstart: $(VENV)/.installed
	$(BIN)/aigc train --config=configs/gan/dcgan.py:quickstart --workdir=runs/quickstart
	$(BIN)/aigc generate --workdir=runs/quickstart --num=100 --out=runs/quickstart/digits --overwrite
	@echo "100 generated digits: runs/quickstart/digits.png"

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What needs XLA's TPU compiler, which runs on a CPU. It stays out of the environment until then: its
# presence slows the start of every program.
test-tpu: $(VENV)/.installed
	@if command -v uv >/dev/null 2>&1; then \
		uv sync --frozen --inexact --extra dev --extra aot; \
	else \
		$(BIN)/pip install --quiet -e '.[dev,aot]'; \
	fi
	$(BIN)/python -m pytest -m tpu_compiler -n 2

# The page of results is made of the files in results/.
results: $(VENV)/.installed
	$(BIN)/aigc reproduce --table=docs/results.md

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# uv.lock is universal: every Python and platform that pyproject.toml admits.
lock:
	uv lock

clean:
	rm -rf $(VENV) runs

# With uv the lock file decides the versions; pip takes the newest that pyproject.toml allows.
$(VENV)/.installed: pyproject.toml uv.lock
	@if command -v uv >/dev/null 2>&1; then \
		uv sync --frozen --extra dev --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"; \
	else \
		$(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet -e '.[dev]'; \
	fi
	@touch $@
