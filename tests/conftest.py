"""Eight simulated devices, shapes checked at run time, and each program compiled once."""

import importlib.metadata
import os
import signal
import tempfile
from importlib.util import find_spec

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Compilation is most of the work here: LLVM's optimisations would cost more than they save, XLA's
# newer emitter takes three times as long as the older one, and a cache lets the runs, workers and
# processes of one `pytest` share their programs. Processes that a test starts inherit all of this:
# with other flags they would share nothing.
_flags = ["--xla_backend_optimization_level=0"]
# Later ones have the newer emitter alone, and libtpu ends a process over a flag that it lacks.
if importlib.metadata.version("jaxlib").startswith("0.10.") and not find_spec("libtpu"):
    _flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join(_flags)
os.environ["NPROC"] = "32"  # XLA's threads: see aigc_jax.parallel.processes.cpu_devices
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # workers compile for TPUs side by side
# The workers share the main process's folder. One that was given is kept for the next run.
_made = "AIGC_TEST_SCRATCH" not in os.environ
if _made:
    os.environ["AIGC_TEST_SCRATCH"] = tempfile.mkdtemp(prefix="aigc_jax_tests_")
_scratch = os.environ["AIGC_TEST_SCRATCH"]
os.environ["AIGC_CACHE_DIR"] = os.path.join(_scratch, "data")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_scratch, "programs")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# `nohup` has it ignored, and what tests start would ignore it, too: a handler is not inherited.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

from jaxtyping import install_import_hook

install_import_hook("aigc_jax", "beartype.beartype")

import gc
import shutil
import sys

import hypothesis
import pytest

# No test is about time: a busy machine, or the first call's compilation, is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser):
    parser.addoption("--renew-goldens", action="store_true", help="rewrite tests/golden/")


@pytest.fixture
def renew(request):
    """Whether goldens are to be rewritten rather than compared with."""
    return request.config.getoption("--renew-goldens")


def pytest_unconfigure(config):
    if _made and not hasattr(config, "workerinput"):  # the main process outlives its workers
        shutil.rmtree(_scratch, ignore_errors=True)


# Those that take longest, so that no worker is left with one of them when the others are done
# (`make test` deals files to the workers in this order).
SLOW = (
    "test_compile.py",
    "test_stops.py",
    "test_processes.py",
    "test_reproduce.py",
    "test_bucket_runs.py",
    "test_seeds.py",
    "test_sweep.py",
    "test_train.py",
    "test_command_line_runs.py",
    "test_seq2seq.py",
    "test_nonfinite.py",
    "test_executable.py",
)


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path.name, len(SLOW)))


# Tracing makes objects by the million, and Python would look through all of them every 700.
gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """A file's programs leave memory with it: a worker would grow by gigabytes, and slow down."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory):
    """A whole run, and one that stopped after step 5. For `undisturbed` alone: tests get copies."""
    from runs import make_config, stop_at

    from aigc_jax.train import train

    root = tmp_path_factory.mktemp("runs")
    config = make_config("vae")
    train(config, root / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 4)
        train(config, root / "half")
    return root


@pytest.fixture(scope="module")
def undisturbed(two_runs, tmp_path_factory):
    """A whole run, and one that stopped after step 5, to be copied and gone on with."""
    return shutil.copytree(two_runs, tmp_path_factory.mktemp("undisturbed") / "runs")
