import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_jax.data import identity as identity_lib
from aigc_jax.data.identity import Entry, changes, identity

NAMES = st.text("ab/", min_size=1, max_size=6)
FILES = st.dictionaries(
    NAMES, st.builds(Entry, st.integers(0, 3), st.none() | st.integers(0, 3)), max_size=12
)


@given(FILES, FILES, st.sampled_from([1, 4, 1000]))
def test_changes_are_found_however_many_files_there_are(before, after, limit):
    """Exactly when a name, a size, or a checksum that both know of the same files, differs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity_lib, "LIMIT", limit)
        first, second = (json.loads(json.dumps(identity(f, {}))) for f in (before, after))
    sizes = [{name: entry.size for name, entry in files.items()} for files in (before, after)]
    if sizes[0] != sizes[1]:
        assert changes(first, second)
    elif before == after:
        assert changes(first, second) == ""
    known = [
        {n: e for n, e in files.items() if e.checksum is not None} for files in (before, after)
    ]
    if sizes[0] == sizes[1] and known[0].keys() == known[1].keys():
        assert bool(changes(first, second)) == (known[0] != known[1])


def test_what_changed_is_named():
    before = {f"{c}/{i}.png": Entry(9) for c in "ab" for i in range(3)}
    after = {**before, "a/0.png": Entry(10), "c/new.png": Entry(9)}
    del after["b/1.png"]
    assert changes(identity(before, {}), identity(after, {})) == (
        "1 file removed (b/1.png); 1 file added (c/new.png); 1 file edited (a/0.png)"
    )


def test_of_many_files_the_folders_are_named_in_little_space():
    before = {f"train/{c}/{i}.png": Entry(9) for c in "ab" for i in range(3000)}
    after = {name: entry for name, entry in before.items() if name != "train/b/7.png"}
    stored = identity(before, {"train": 6000})
    assert len(json.dumps(stored)) < 1000
    assert changes(stored, identity(after, {"train": 5999})) == (
        "1 folder changed (train/b: 3,000 files then, 2,999 now)"
    )


def test_another_sharing_out_is_a_change_and_an_unknown_identity_is_none():
    files = {"a": Entry(1)}
    one, other = identity(files, {"train": 3}), identity(files, {"train": 2, "test": 1})
    assert "train 3 then; train 2, test 1 now" in changes(one, other)
    assert changes({}, one) == changes(one, {}) == ""
