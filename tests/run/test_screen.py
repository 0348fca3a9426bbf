"""The console's lines are short, and say what people read."""

import re

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_jax.run import screen
from aigc_jax.tasks.task import Network, TrainState

NAMES = {  # of all families, and some longer
    "gan": ("discriminator_loss", "generator_loss", "real_accuracy", "fake_accuracy"),
    "vae": ("loss", "reconstruction", "kl"),
    "causal_lm": ("loss", "perplexity", "accuracy", "bits_per_byte", "bits_per_character"),
    "many": tuple(f"a_rather_long_name_of_metric_{i}" for i in range(12)),
}
NUMBERS = st.floats(-1e12, 1e12, allow_subnormal=True) | st.just(float("nan"))


@given(st.data())
@pytest.mark.parametrize("family", NAMES)
def test_every_line_fits(family, data):
    values = {name: data.draw(NUMBERS) for name in NAMES[family]}
    total = data.draw(st.integers(1, 2**40))
    step = data.draw(st.integers(1, total))
    per_second = {"tokens_per_second": data.draw(st.floats(1e-6, 1e13)), "ms_per_step": 1e5}
    norms = {"gradient_norm/model": 1.0, "update_norm/model": 1.0}
    line = screen.train_line(step, total, values | norms, per_second)
    several = {
        f"{e}/{name}": value for e in ("eval", "train_set") for name, value in values.items()
    }
    lines = [*line.split("\n"), *screen.evaluation_lines(step, several).split("\n")]
    assert max(map(len, lines)) < 100
    words = " ".join(line.split())
    assert all(re.search(rf"\b{name} \S+", words) for name in values)
    assert "norm" not in words
    assert words.count("/s,") + words.endswith("/s") == 1  # one speed
    assert (" left" in words) == (step < total)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min"),
        (3599, "1 h"),
        (7800, "2 h 10 min"),
        (86399, "1 day"),
        (100_800, "1 day 4 h"),
        (2 * 86400 + 3600, "2 days 1 h"),
        (400 * 86400, "400 days"),
    ],
)
def test_times_in_words(seconds, words):
    assert screen.duration(float(seconds)) == words


@given(st.floats(0, 1e9))
def test_a_time_in_words_is_right_to_its_smallest_unit(seconds):
    units = {"s": 1, "min": 60, "h": 3600, "day": 86400, "days": 86400}
    parts = re.findall(r"([\d,]+) (\w+)", screen.duration(seconds))
    said = sum(int(n.replace(",", "")) * units[unit] for n, unit in parts)
    assert len(parts) <= 2
    # of a whole number of hours the minutes are not said, and of days the hours
    smallest = 1 if seconds < 59.5 else 60 if seconds < 86400 - 30 else 3600
    assert abs(said - seconds) <= smallest / 2 + 1e-6


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (12_600, "tokens", "12.6k tok/s"),
        (1_230, "images", "1.23k img/s"),
        (999.4, "images", "999 img/s"),
        (999.6, "images", "1k img/s"),
        (0.714, "images", "0.714 img/s"),
        (3.5e6, "tokens", "3.5M tok/s"),
        (12, "examples", "12 examples/s"),
    ],
)
def test_speeds(value, unit, words):
    assert screen.speed(float(value), unit) == words


def test_a_text_stays_as_it_is_but_a_terminal_does_not_obey_it():
    assert screen.shown_text("To be,\n\tör nöt\n") == "To be,\n\tör nöt\n"
    assert screen.shown_text("\x1b[2J\r\x07") == "\\x1b[2J\\r\\x07"


def array(*shape):
    return jax.ShapeDtypeStruct(shape, "float32")


def dense(inputs, outputs):
    return {"kernel": array(inputs, outputs), "bias": array(outputs)}


def table(**networks):
    return screen.parameter_table(
        TrainState(0, {name: Network(tree, {}, {}, {}) for name, tree in networks.items()})
    ).split("\n")


def sizes(lines):
    return [int(line.split()[-3].replace(",", "")) for line in lines if line[0] == " "]


def test_modules_that_are_alike_stand_in_one_row():
    blocks = {f"block_{i}": {"in": dense(8, 32), "out": dense(32, 8)} for i in range(12)}
    lines = table(model={**blocks, "embedding": array(100, 8), "last": dense(8, 2)})
    assert [line.split("  ")[1] for line in lines[1:]] == [
        "block_0 to block_11/in",
        "block_0 to block_11/out",
        "embedding",
        "last",
    ]
    assert lines[0] == "model: 7,442 parameters, 29.8 kB"
    assert sum(sizes([line.split("  [")[0].split("  12 x")[0] for line in lines])) == 7442


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 6))
def test_the_table_is_a_dozen_lines_and_holds_every_parameter(widths, depth):
    def tree(width, depth):
        if depth == 0:
            return dense(3, width)
        return {f"part{chr(97 + i % 26)}{i}x": tree(width, depth - 1) for i in range(min(width, 4))}

    networks = {f"net{i}": tree(width, min(depth, 4)) for i, width in enumerate(widths)}
    lines = table(**networks)
    assert len(lines) <= screen.TABLE_ROWS
    assert max(map(len, lines)) < 100
    counts = [line.split("  [") for line in lines]
    total = sum(
        int(re.search(r"([\d,]+)  +[\d.]+ %", line[0])[1].replace(",", ""))
        for line in counts
        if line[0].startswith("  ")
    )
    said = sum(
        int(re.search(r": ([\d,]+) par", x)[1].replace(",", "")) for x in lines if x[0] != " "
    )
    assert total == said
