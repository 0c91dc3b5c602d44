import sys

import pytest

from cloister.emulator import hosttools
from cloister.errors import EnclaveUnavailable


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A host without any program; `add` makes some."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(hosttools, "_MORE_FOLDERS", ())
    monkeypatch.setattr(hosttools, "KEYRING", tmp_path / "keyring.gpg")

    def add(*names):
        for name in names:
            (tmp_path / name).write_text("#!/bin/sh\nexit 0\n")
            (tmp_path / name).chmod(0o755)

    return add


def test_all_that_is_missing_is_named_at_once_with_one_command(bare):
    bare("apt-get", "gcc", "make")
    with pytest.raises(EnclaveUnavailable) as caught:
        hosttools.require(hosttools.RUNNING, hosttools.BUILDING)
    missing = ["qemu-system-arm", "gcc-aarch64-linux-gnu", "dpkg-dev", "e2fsprogs"]
    assert all(name in str(caught.value) for name in missing)
    assert "make" not in str(caught.value)
    assert caught.value.hint.startswith("apt install --no-install-recommends qemu-system-arm gcc-aarch64-linux-gnu ")


def test_headers_that_a_compiler_does_not_find_are_missing(bare, tmp_path):
    bare("apt-get")
    name = f"{hosttools.CROSS_COMPILE}gcc"
    (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / name).chmod(0o755)
    with pytest.raises(EnclaveUnavailable) as caught:
        hosttools.require(hosttools.BUILDING)
    assert "libc6-dev-arm64-cross" in str(caught.value)
    assert "gcc-aarch64-linux-gnu" not in str(caught.value)


def test_a_host_without_apt(bare):
    with pytest.raises(EnclaveUnavailable, match="no apt-get") as caught:
        hosttools.require(hosttools.RUNNING)
    assert "Debian" in caught.value.hint


def test_nothing_missing(bare):
    bare("apt-get", hosttools.QEMU)
    hosttools.require(hosttools.RUNNING)


def test_programs_for_administrators_are_found(monkeypatch, tmp_path):
    (tmp_path / "mke2fs").write_text("#!/bin/sh\n")
    (tmp_path / "mke2fs").chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(hosttools, "_MORE_FOLDERS", (str(tmp_path),))
    assert hosttools.tool("mke2fs") == str(tmp_path / "mke2fs")


def test_a_program_s_output():
    assert hosttools.run_tool([sys.executable, "-c", "print(2 * 21)"], "no sum") == "42\n"


def test_a_program_that_fails_comes_with_its_last_lines():
    code = "import sys; [print('line', n, flush=True) for n in range(100)]; sys.exit('the end')"
    with pytest.raises(EnclaveUnavailable) as caught:
        hosttools.run_tool([sys.executable, "-c", code], "no lines", hint="try another")
    text = str(caught.value)
    assert text.startswith(f"no lines: {sys.executable} ended with 1:\n")
    assert "line 99" in text
    assert "the end" in text
    assert "line 50\n" not in text
    assert caught.value.hint == "try another"


def test_a_program_that_is_not_there():
    with pytest.raises(EnclaveUnavailable, match="no-such-program cannot be started"):
        hosttools.run_tool(["no-such-program"], "nothing")


def test_make_does_not_inherit_the_settings_of_a_make_around_it(monkeypatch):
    monkeypatch.setenv("MAKEFLAGS", "-n")
    code = "import os; print(os.environ.get('MAKEFLAGS'), os.environ['LC_ALL'], os.environ['EXTRA'])"
    assert hosttools.run_tool([sys.executable, "-c", code], "no", env={"EXTRA": "e"}) == "None C e\n"
