import os

from hypothesis import given
from hypothesis import strategies as st

from aigc_jax.errors import printable


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
