"""The doctor finds what is wrong, and says what to do about it."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cloister.enclave import core, doctor, local, optee
from cloister.enclave.doctor import checks
from cloister.errors import EnclaveUnavailable
from tests.enclave import fake
from tests.enclave.bridge import Bridge


def by_name():
    return {check.name: check for check in checks()}


def test_this_machine_is_fit():
    found = by_name()
    for name in ("python", "local enclave", "interpreter", "state folder", "not dumpable", "torch", "torchao"):
        assert found[name].state == "ok", found[name]
    assert "process isolation, not hardware" in found["local enclave"].detail
    assert all(check.fix for check in found.values() if check.state != "ok")


def test_missing_enclave_is_a_failure_with_a_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(local.importlib.resources, "files", lambda package: tmp_path)
    check = by_name()["local enclave"]
    assert check.state == "fail"
    assert "OpenSSL" in check.fix


def test_missing_library_is_a_failure(monkeypatch):
    def missing(program, constants):
        raise EnclaveUnavailable("the library does not load", "reinstall")

    monkeypatch.setattr(core, "OutsideProgram", missing)
    assert by_name()["interpreter"].state == "fail"


def test_each_missing_hardening_is_a_warning(monkeypatch, tmp_path):
    fake.install(monkeypatch, tmp_path)
    found = by_name()
    for name in ("not dumpable", "no core files", "memory locked", "memory hidden", "system call filter"):
        assert found[name].state == "warn"
        assert found[name].fix
    assert "hardware isolation" not in found


def test_emulator_that_cannot_run_is_a_warning_with_the_command(monkeypatch):
    from cloister.emulator import hosttools

    monkeypatch.setattr(hosttools, "RUNNING", {"qemu-system-arm": lambda: False})
    monkeypatch.setattr(hosttools, "tool", lambda name: name)
    check = doctor._check_emulator()
    assert check.state == "warn"
    assert "qemu-system-arm" in check.detail
    assert check.fix.startswith("apt install --no-install-recommends qemu-system-arm")


def test_emulator_that_can_run(monkeypatch):
    from cloister.emulator import hosttools

    monkeypatch.setattr(hosttools, "require", lambda *_: None)
    assert doctor._check_emulator().state == "ok"


def test_state_folder_that_others_can_read_is_a_failure():
    folder = local.state_folder()
    folder.chmod(0o755)
    try:
        check = doctor._check_state_folder()
    finally:
        folder.chmod(0o700)
    assert check.state == "fail"
    assert check.fix == f"chmod 700 {folder}"


def test_state_folder_that_cannot_be_made_is_a_failure(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLOISTER_STATE", str(tmp_path / "file"))
    assert doctor._check_state_folder().state == "fail"


@pytest.mark.parametrize(("limit", "state"), [(-1, "ok"), (8 << 20, "warn"), (1 << 30, "ok")])
def test_limit_of_locked_memory(limit, state, monkeypatch):
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (limit, limit))
    assert doctor._check_locked_memory().state == state


@pytest.mark.parametrize(("version", "state"), [("2.13.1+cpu", "ok"), ("2.12.0", "warn"), (None, "warn")])
def test_version_of_torch(version, state, monkeypatch):
    def found(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(doctor.importlib.metadata, "version", found)
    check = doctor._check_package("torch", "2.13")
    assert check.state == state
    assert bool(check.fix) == (state == "warn")


def test_versions_are_the_packages():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for name, version in doctor._MODEL_PACKAGES.items():
        assert any(need.startswith(f"{name}>={version}") for need in project["dependencies"])


def test_doctor_imports_no_torch():
    script = (
        "import sys\n"
        "from cloister.enclave.doctor import checks\n"
        "checks()\n"
        "print([name for name in ('torch', 'torchao', 'sklearn', 'cryptography') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert run.stdout == "[]\n"


# --- OP-TEE ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def board(monkeypatch, tmp_path):
    """A machine with OP-TEE: its device, and the trusted application behind a bridge."""
    device = tmp_path / "tee0"
    device.touch()
    bridge = Bridge()
    monkeypatch.setattr(optee, "DEVICE", device)
    monkeypatch.setattr(optee, "open_link", lambda: bridge.link)
    return bridge


@pytest.mark.parametrize(("machine", "state"), [("x86_64", "ok"), ("aarch64", "warn")])
def test_machine_without_optee(machine, state, monkeypatch, tmp_path):
    monkeypatch.setattr(optee, "DEVICE", tmp_path / "tee0")
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    check = by_name()["optee"]
    assert check.state == state
    assert bool(check.fix) == (state == "warn")


def test_board_is_checked_from_driver_to_application(board):
    found = by_name()
    assert found["optee device"].state == "ok"
    assert found["trusted application"].state == "ok"
    assert found["its heap"].detail == "8 MiB"
    assert found["secure RAM"].state == "warn"


def test_application_that_is_refused_is_a_failure_with_the_fix(board):
    board.hello = (0xFFFF000F, 4)
    check = by_name()["trusted application"]
    assert check.state == "fail"
    assert "signature" in check.detail
    assert check.fix == board.link.install_hint


@pytest.mark.parametrize(("name", "state", "says"), [("rpi3", "warn", "no secure boot"), ("mine", "ok", "of its own")])
def test_what_the_board_is_worth(name, state, says):
    check = doctor._check_board(name)
    assert check.state == state
    assert says in check.detail


@pytest.mark.parametrize(
    ("runs", "state", "says"), [(True, "ok", ""), (False, "fail", "systemctl"), (None, "warn", "pgrep tee-supplicant")]
)
def test_tee_supplicant(runs, state, says, monkeypatch):
    monkeypatch.setattr(optee, "supplicant_runs", lambda: runs)
    check = doctor._check_supplicant()
    assert check.state == state
    assert says in check.fix
