"""Only what nobody else could have written is run."""

import os

import pytest

from aigc_jax.aot.trusted import check_trusted, read_trusted
from aigc_jax.errors import UserError


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    path = folder / "step"
    path.write_bytes(b"content")
    path.chmod(0o644)
    return path


def test_what_is_mine_is_read(path):
    assert read_trusted("executable", path) == b"content"
    check_trusted("executable", path.with_name("not there yet"))


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o777])
def test_a_file_that_others_may_write_is_refused(path, mode):
    path.chmod(mode)
    with pytest.raises(UserError, match=rf"can be written by others.*chmod go-w {path}"):
        read_trusted("executable", path)


@pytest.mark.parametrize("mode", [0o775, 0o757])
@pytest.mark.parametrize("above", [0, 1])
def test_a_directory_that_others_may_write_is_refused_on_every_level(path, mode, above):
    path.parents[above].chmod(mode)
    for asked in (path, path.with_name("not there yet")):
        with pytest.raises(UserError, match=f"chmod go-w {path.parents[above]}$"):
            check_trusted("executable", asked)


def test_in_a_sticky_directory_the_owner_counts(path):
    path.parent.chmod(0o1777)
    assert read_trusted("executable", path) == b"content"
    path.chmod(0o666)
    with pytest.raises(UserError, match="can be written by others"):
        read_trusted("executable", path)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files away")
@pytest.mark.parametrize("above", [False, True])
def test_what_belongs_to_another_user_is_refused(path, above):
    os.chown(path.parent if above else path, 4711, -1)
    with pytest.raises(UserError, match=r"belongs to user 4711.*copy it"):
        read_trusted("executable", path)


def test_links_are_followed_on_both_sides(path, tmp_path):
    folder = tmp_path / "links"
    folder.mkdir()
    link = folder / "link"
    link.symlink_to(path)
    assert read_trusted("executable", link) == b"content"
    folder.chmod(0o777)  # the link may be bent
    with pytest.raises(UserError, match=f"chmod go-w {folder}$"):
        read_trusted("executable", link)
    folder.chmod(0o755)
    path.parent.chmod(0o777)  # what it leads to may be replaced
    with pytest.raises(UserError, match=f"chmod go-w {path.parent}$"):
        read_trusted("executable", link)


@pytest.mark.parametrize("name", ["missing", "step/below", ".", "loop"])
def test_what_cannot_be_read_is_said_in_a_line(path, name):
    (path.parent / "loop").symlink_to(path.parent / "loop")
    with pytest.raises(UserError, match="cannot read --executable="):
        read_trusted("executable", path.parent / name)
