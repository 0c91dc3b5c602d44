"""Output files: what cannot be written is refused at once; what is written is whole."""

import errno
import os
from pathlib import Path

import pytest

from cloister.errors import OutputExists, UserError
from cloister.outputs import check_output, refuse_existing, write_whole, written_whole


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "folder", "link"])
@pytest.mark.parametrize("force", [True, False])
def test_folder_is_refused(tmp_path, name, force):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(UserError, match="got the folder") as error:
        check_output(Path(name), force=force)
    assert error.value.exit_code == 2


def test_existing_file_is_refused_unless_forced(tmp_path):
    path = tmp_path / "out"
    path.write_text("mine")
    for refuse in (check_output, refuse_existing):
        with pytest.raises(OutputExists, match="exists already"):
            refuse(path, force=False)
        refuse(path, force=True)
    assert path.read_text() == "mine"


def test_dangling_link_is_there_too(tmp_path):
    (tmp_path / "out").symlink_to("nothing")
    with pytest.raises(OutputExists):
        check_output(tmp_path / "out", force=False)


def test_folder_that_is_not_there_is_found_at_once(tmp_path):
    with pytest.raises(UserError, match="cannot be written") as error:
        check_output(tmp_path / "none" / "out", force=False)
    assert f"`{tmp_path / 'none'}`" in error.value.hint
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        check_output(tmp_path / "file" / "out", force=True)


def test_name_that_cannot_be_is_found_at_once(tmp_path):
    with pytest.raises(UserError, match="too long"):
        check_output(tmp_path / ("x" * 300), force=False)


def test_check_leaves_nothing(tmp_path):
    check_output(tmp_path / "out", force=False)
    assert os.listdir(tmp_path) == []


def test_written_file_is_there(tmp_path):
    write_whole(tmp_path / "out", b"all of it", force=False)
    assert (tmp_path / "out").read_bytes() == b"all of it"
    assert os.listdir(tmp_path) == ["out"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "out").write_text("mine")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_whole(tmp_path / "out", b"all of it", force=True)
    assert (tmp_path / "out").read_text() == "mine"
    assert os.listdir(tmp_path) == ["out"]


def test_file_that_came_meanwhile_is_kept(tmp_path):
    path = tmp_path / "out"

    def write():
        with written_whole(path, force=False) as temporary:
            temporary.write_text("ours")
            path.write_text("theirs")

    with pytest.raises(OutputExists):
        write()
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["out"]
