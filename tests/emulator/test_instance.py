"""A machine's folder: whose it is, what is in it, and whom `down` ends."""

import os
import signal
import subprocess
import sys

import pytest

from cloister import emulator
from cloister.emulator import build, hosttools, qemu, start
from cloister.errors import EnclaveError, EnclaveUnavailable, UserError


@pytest.fixture(autouse=True)
def _state(monkeypatch, tmp_path):
    monkeypatch.setenv("CLOISTER_STATE", str(tmp_path / "state"))


@pytest.fixture
def machine():
    machine = emulator.instance()
    machine.make_folder()
    return machine


USES = pytest.mark.parametrize("use", [emulator.up, emulator.down, emulator.status, emulator.logs, emulator.connect])


@USES
def test_a_folder_where_others_may_write_is_refused(machine, use):
    machine.folder.chmod(0o770)
    with pytest.raises(UserError, match="others may write there") as caught:
        use()
    assert "CLOISTER_STATE" in caught.value.hint


@USES
def test_another_s_folder_is_refused(machine, use, monkeypatch):
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    with pytest.raises(UserError, match=f"belongs to user {real}"):
        use()


def test_a_folder_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLOISTER_STATE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be made"):
        emulator.instance().make_folder()


def test_a_file_that_cannot_be_used_is_named(machine):
    (machine.folder / "lock").mkdir()
    with pytest.raises(UserError, match=f"{machine.folder / 'lock'}: Is a directory"):
        emulator.down()


#: Holds a lock on the file as QEMU does.
HOLD = """
import fcntl, os, sys, time
with open(sys.argv[1], "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print(os.getpid(), file=file, flush=True)
    print(flush=True)
    time.sleep(60)
"""


def test_down_ends_no_process_but_qemu(machine):
    with subprocess.Popen([sys.executable, "-c", HOLD, machine.folder / "pid"], stdout=subprocess.PIPE) as other:
        try:
            other.stdout.readline()
            assert qemu.process_id(machine.folder) == other.pid
            with pytest.raises(EnclaveError, match=f"process {other.pid} is .*python"):
                emulator.down()
            assert other.poll() is None
        finally:
            other.kill()


@pytest.mark.parametrize("error", [ProcessLookupError, FileNotFoundError])
def test_qemu_that_ends_by_itself_is_no_error(machine, monkeypatch, error):
    processes = iter([os.getpid()] * 2)

    def gone(*_):
        raise error

    monkeypatch.setattr(qemu, "process_id", lambda _: next(processes, None))
    monkeypatch.setattr(qemu, "_kill", gone)
    monkeypatch.setattr(qemu.time, "monotonic", iter(range(0, 100, 10)).__next__)
    qemu.kill(machine.folder)


def test_the_storage_has_no_holes(machine):
    start._make_storage(machine, lambda _: None)
    about = (machine.folder / "storage.img").stat()
    assert about.st_blocks * 512 >= about.st_size == start._STORAGE_BYTES
    assert machine.empty_mark.exists()
    assert not (machine.folder / "storage.new").exists()


def test_no_room_for_the_storage_is_named(machine, monkeypatch):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(hosttools, "require", lambda *_: None)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(EnclaveUnavailable, match="storage of 16 MiB cannot be made: File too large") as caught:
            start._make_storage(machine, lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "CLOISTER_STATE" in caught.value.hint
    assert not list(machine.folder.glob("storage.*"))


@pytest.mark.parametrize("odd", [" ", "'", '"', "$", "#", "(", ":", "%", "\\", "~"])
def test_a_path_that_make_would_take_apart_is_refused_before_anything_is_fetched(monkeypatch, tmp_path, odd):
    monkeypatch.setenv("CLOISTER_CACHE", str(tmp_path / f"a{odd}b"))
    monkeypatch.setattr(hosttools, "require", lambda *_: None)
    monkeypatch.setattr(qemu, "identity", list)
    with pytest.raises(UserError, match=r"cannot be built with `.` in this path") as caught:
        emulator.up()
    assert "CLOISTER_CACHE" in caught.value.hint
    assert not list((tmp_path / f"a{odd}b").rglob("*-packages-*"))


def test_a_python_with_a_space_in_its_path_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", "/home/a b/bin/python")
    with pytest.raises(UserError, match="/home/a b/bin/python") as caught:
        build.check_paths(tmp_path)
    assert "virtual environment" in caught.value.hint
