"""What the command says where no machine runs. The machine itself: tests/emulator/test_machine.py."""

import pytest

from cloister.emulator import hosttools


@pytest.fixture(autouse=True)
def _empty(monkeypatch, tmp_path):
    monkeypatch.setenv("CLOISTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CLOISTER_STATE", str(tmp_path / "state"))


@pytest.fixture
def bare_host(monkeypatch, tmp_path):
    """A Debian with nothing installed."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/apt-get").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin/apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(hosttools, "_MORE_FOLDERS", ())


def test_status_of_a_machine_that_never_ran(call, tmp_path):
    outcome = call("emulator", "status", "-f", "json")
    assert outcome.code == 0
    assert outcome.document == {
        "schema": "cloister.emulator/1",
        "machine": "virt",
        "board": "qemu-virt",
        "state": "stopped",
        "process_id": None,
        "application": None,
        "clients": [],
        "folder": str(tmp_path / "state/emulator/virt"),
        "warning": outcome.document["warning"],
    }
    assert "demonstration" in outcome.document["warning"]
    assert not (tmp_path / "state").exists()


def test_status_for_people(call):
    outcome = call("emulator", "status")
    assert "state    stopped" in outcome.out
    assert "a demonstration" in outcome.out


def test_down_of_a_machine_that_does_not_run(call, tmp_path):
    assert call("emulator", "down", "-f", "json").document["state"] == "stopped"
    (tmp_path / "state/emulator/virt").mkdir(parents=True)
    assert call("emulator", "down", "-f", "json").document["state"] == "stopped"


def test_logs(call, tmp_path):
    assert call("emulator", "logs").out == ""
    folder = tmp_path / "state/emulator/virt"
    folder.mkdir(parents=True)
    (folder / "optee.log").write_bytes(b"one\r\ntwo \x1b[2J\xff\r\n")
    assert call("emulator", "logs", "--world", "optee").out == "one\ntwo \\x1b[2J\N{REPLACEMENT CHARACTER}\n"
    lines = call("emulator", "logs", "--world", "optee", "-f", "json").document["lines"]
    assert lines == ["one", "two \x1b[2J\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("command", ["up", "down", "status", "logs"])
def test_an_unknown_machine(call, command):
    outcome = call("emulator", command, "--machine", "rpi9")
    assert outcome.code == 2
    assert "there is no machine `rpi9`" in outcome.err
    assert "virt" in outcome.err.partition("hint")[2]


def test_up_on_a_bare_host_names_all_that_is_missing(call, bare_host, tmp_path):
    outcome = call("emulator", "up")
    assert outcome.code == 3
    assert "apt install --no-install-recommends qemu-system-arm gcc" in outcome.err
    assert sorted(path.name for path in (tmp_path / "cache/emulator").iterdir()) == ["lock"]


def test_up_without_a_mirror(call, monkeypatch, tmp_path):
    monkeypatch.setattr(hosttools, "require", lambda *_: None)
    monkeypatch.setenv("CLOISTER_DEBIAN_MIRROR", "nowhere")
    outcome = call("emulator", "up")
    assert outcome.code == 3
    assert "CLOISTER_DEBIAN_MIRROR: expected an address" in outcome.err
    assert sorted(path.name for path in (tmp_path / "cache/emulator").iterdir()) == ["lock"]


def test_running_a_bundle_while_no_machine_runs(call, bundle):
    outcome = call("run", bundle, "--data", "digits", "--enclave", "emulator")
    assert outcome.code == 3
    assert "the emulator `virt` is not running" in outcome.err
    assert "cloister emulator up" in outcome.err
