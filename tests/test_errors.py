import os

from hypothesis import given
from hypothesis import strategies as st

from aigc_jax.errors import nearest, printable


@given(st.text(alphabet=st.characters(exclude_categories=[]), max_size=50))
def test_any_name_can_be_shown_and_moves_no_cursor(name):
    shown = printable(name)
    assert shown.isprintable()
    shown.encode()
    if name.isprintable():
        assert shown == name


def test_bytes_that_are_no_utf8_and_control_characters_are_escaped():
    assert printable(os.fsdecode(b"caf\xe9\x1b[2J\n")) == r"caf\xe9\x1b[2J\n"
    assert printable("名前 é") == "名前 é"
    assert len(printable("n" * 5000)) < 500


def test_of_many_names_some_are_shown():
    assert nearest("x", ["a1", "b2"]) == "; known: a1, b2"
    assert nearest("a", ["a1", "b2"]) == '; did you mean "a1"?'
    shown = nearest("?", [f"name{i}" for i in range(5000)])
    assert "(5000 in all)" in shown
    assert len(shown) < 500
