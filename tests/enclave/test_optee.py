"""A board's OP-TEE, before anything is asked of it: what is missing is named at once."""

import subprocess

import pytest

from cloister.enclave import local, optee
from cloister.errors import EnclaveUnavailable


@pytest.fixture
def board(monkeypatch, tmp_path):
    """A machine with the device, all of whose processes can be seen; without `cloister-host`."""
    processes = {"1": "init", "2": "kthreadd", "310": "tee-supplicant"}
    device, folder = tmp_path / "tee0", tmp_path / "proc"
    device.touch()
    for number, name in processes.items():
        (folder / number).mkdir(parents=True)
        (folder / number / "comm").write_text(f"{name}\n")
    (folder / "net").mkdir()
    (folder / "999").mkdir()  # a process that ends while it is looked at
    monkeypatch.setattr(optee, "DEVICE", device)
    monkeypatch.setattr(optee, "binary_path", lambda name: tmp_path / name)
    real = optee.supplicant_runs
    monkeypatch.setattr(optee, "supplicant_runs", lambda: real(folder))
    return folder


def rename(board, number, name):
    (board / number / "comm").write_text(f"{name}\n")


def test_tee_supplicant_runs(board):
    assert optee.supplicant_runs() is True
    with pytest.raises(EnclaveUnavailable, match="cloister-host: cannot be started"):
        optee.open_link()


def test_without_tee_supplicant_nothing_is_started(board):
    rename(board, "310", "tee-supplicantd")
    assert optee.supplicant_runs() is False
    with pytest.raises(EnclaveUnavailable, match="tee-supplicant does not run") as caught:
        optee.open_link()
    assert "systemctl enable --now tee-supplicant" in caught.value.hint


def test_in_a_container_the_board_decides(board):
    """There nobody sees whether it runs."""
    rename(board, "310", "sh")
    rename(board, "2", "sh")
    assert optee.supplicant_runs() is None
    with pytest.raises(EnclaveUnavailable, match="cloister-host: cannot be started"):
        optee.open_link()


def test_no_device(board):
    optee.DEVICE.unlink()
    with pytest.raises(EnclaveUnavailable, match="there is no OP-TEE on this machine"):
        optee.open_link()


def test_a_process_that_the_kernel_keeps_is_not_waited_for_for_ever():
    class Kept:
        killed = 0

        def wait(self, timeout=None):
            assert timeout is not None
            raise subprocess.TimeoutExpired("cloister-host", timeout)

        def kill(self):
            self.killed += 1

    process = Kept()
    local.end_process(process)
    assert process.killed == 1
