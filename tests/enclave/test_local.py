"""The enclave's process: how it starts, ends, and what its client does when it misbehaves."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cloister.bundle.keys import recipients
from cloister.enclave import local
from cloister.enclave.local import LocalEnclave, local_info, state_folder
from cloister.enclave.wire import Command, Kind, Parameter, Region
from cloister.errors import (
    EnclaveCrashed,
    EnclaveError,
    EnclaveUnavailable,
    ProtocolError,
    UserError,
)
from tests.enclave import fake


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "store"
    path.write_bytes(bytes(4096))
    with path.open("rb") as file:
        yield file


def start(store, payload_bytes=4096):
    return LocalEnclave(store, payload_bytes=payload_bytes, heap_bytes=1 << 16)


def assert_gone(process_id):
    """Ended, and not waiting to be collected either."""
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


# --- The real one --------------------------------------------------------------------------------------------------


def test_enclave_says_who_it_is():
    info = local_info()
    assert info.kind == "local"
    assert info.isolation == "process isolation, not hardware"
    assert not info.hardening.hardware_isolation
    assert info.hardening.not_dumpable
    assert info.hardening.no_core_files
    assert len(info.public_key) == 32
    assert info.version


# --- What its protections do, seen from outside ---------------------------------------------------------------------


@pytest.fixture
def user(monkeypatch):
    """A user without rights of its own who runs the enclave: root may look into everything.

    Gives the arguments that make `subprocess` run something as that user.
    """
    if os.geteuid() != 0:
        yield {}
        return
    number = 65534
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        binary = shutil.copy(local.binary_path(), folder)
        (folder / "local-enclave").mkdir(mode=0o700)
        os.chown(folder / "local-enclave", number, number)
        monkeypatch.setenv("CLOISTER_STATE", name)
        monkeypatch.setattr(local, "binary_path", lambda: binary)
        identity = {"user": number, "group": number, "extra_groups": []}
        with monkeypatch.context() as patch:
            patch.setattr(local.subprocess, "Popen", functools.partial(subprocess.Popen, **identity))
            yield identity


def read_as(user, path):
    """Read one byte as that user: the exit status of it."""
    command = ["head", "-c", "1", str(path)]
    return subprocess.run(command, capture_output=True, check=False, **user).returncode


def proc_fields(process_id, name):
    lines = Path(f"/proc/{process_id}/{name}").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/").stat().st_mode & 0o001,
    reason="root tests this as another user, who can run nothing where the root folder is closed to others",
)
def test_same_user_cannot_look_into_the_enclave(store, user):
    with start(store) as enclave, subprocess.Popen(["sleep", "60"], **user) as other:
        try:
            assert enclave.info.hardening.not_dumpable
            for name in ("environ", "maps"):
                assert read_as(user, f"/proc/{other.pid}/{name}") == 0
                assert read_as(user, f"/proc/{enclave.process_id}/{name}") != 0
        finally:
            other.kill()


def test_enclave_gains_no_privileges_and_makes_few_system_calls(store):
    with start(store) as enclave:
        status = proc_fields(enclave.process_id, "status")
        assert enclave.info.hardening.no_new_privileges
        assert status["NoNewPrivs"] == ["1"]
        assert enclave.info.hardening.system_call_filter
        assert status["Seccomp"] == ["2"]


def test_crash_of_the_enclave_writes_no_memory_to_disk(store):
    with start(store) as enclave:
        limits = Path(f"/proc/{enclave.process_id}/limits").read_text().splitlines()
        core = next(line for line in limits if line.startswith("Max core file size"))
        assert enclave.info.hardening.no_core_files
        assert core.split()[4:6] == ["0", "0"]


@pytest.mark.parametrize("file", ["--payload", "--bell"])
def test_shared_memory_keeps_its_size(store, monkeypatch, file):
    """Neither side can take away memory that the other one works on."""
    kept = []
    begin = local._start
    monkeypatch.setattr(local, "_start", lambda files, *rest: kept.append(os.dup(files[file])) or begin(files, *rest))
    with start(store) as enclave:
        try:
            for n_bytes in (0, 8192, 1 << 20):
                with pytest.raises(PermissionError):
                    os.ftruncate(kept[0], n_bytes)
            with pytest.raises(PermissionError):
                fcntl.fcntl(kept[0], fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
            assert enclave.stats().runs == 0
        finally:
            os.close(kept[0])


# --- Device key and state folder ------------------------------------------------------------------------------------


def test_device_key_stays_the_same(tmp_path, monkeypatch):
    assert recipients(["local"]) == [local_info().public_key]
    first = local_info().public_key
    monkeypatch.setenv("CLOISTER_STATE", str(tmp_path))
    assert local_info().public_key != first


def damage(key):
    key.write_bytes(key.read_bytes()[:-1] + bytes([key.read_bytes()[-1] ^ 1]))


BAD_STATES = {
    "damaged": (lambda key: damage(key), "is damaged", "remove {key}: .* no longer open"),
    "cut": (lambda key: os.truncate(key, 71), "is damaged", "remove {key}: .* no longer open"),
    "key open to others": (lambda key: key.chmod(0o644), "open to others", "chmod 600 {key}"),
    "folder open to others": (lambda key: key.parent.chmod(0o750), "open to others", "chmod 700 {folder}"),
}


@pytest.mark.parametrize(("spoil", "says", "hint"), BAD_STATES.values(), ids=BAD_STATES)
def test_bad_state_says_where_and_what_to_do(spoil, says, hint, monkeypatch, tmp_path):
    monkeypatch.setenv("CLOISTER_STATE", str(tmp_path))
    local_info()
    (key,) = state_folder().iterdir()
    spoil(key)
    with pytest.raises(EnclaveError, match=says) as error:
        local_info()
    assert str(key.parent) in str(error.value)
    assert re.search(hint.format(key=re.escape(str(key)), folder=re.escape(str(key.parent))), error.value.hint)
    assert "load the bundle again" not in error.value.hint


def test_process_ends_with_the_object(store):
    with start(store) as enclave:
        process_id = enclave.process_id
        os.kill(process_id, 0)
        assert enclave.stats().runs == 0
    assert_gone(process_id)
    enclave.close()
    with pytest.raises(EnclaveError, match="closed"):
        enclave.stats()


def test_forgotten_enclave_ends_when_it_is_collected(store):
    enclave = start(store)
    process_id = enclave.process_id
    del enclave
    gc.collect()
    assert_gone(process_id)


def test_enclave_ends_with_its_client(tmp_path):
    script = (
        "import os, sys\n"
        "from cloister.enclave.local import LocalEnclave\n"
        "enclave = LocalEnclave(open(sys.argv[1], 'rb'), payload_bytes=0, heap_bytes=65536)\n"
        "print(enclave.process_id, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    (tmp_path / "store").write_bytes(bytes(4096))
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    process_id = int(subprocess.run(command, capture_output=True, check=False, text=True).stdout)
    for _ in range(200):
        if not _is_running(process_id):
            return
        _sleep()
    pytest.fail("the enclave outlives its client")


def _is_running(process_id):
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _sleep():
    import time

    time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_killed_enclave_is_a_crash_that_names_the_signal(store, number):
    with start(store) as enclave:
        process_id = enclave.process_id
        os.kill(process_id, number)
        with pytest.raises(EnclaveCrashed, match=number.name) as error:
            enclave.stats()
        assert error.value.exit_code == 3
        assert_gone(process_id)


def test_crash_is_an_error_also_where_sigpipe_ends_the_process(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from cloister.enclave.local import LocalEnclave\n"
        "from cloister.errors import EnclaveCrashed\n"
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "enclave = LocalEnclave(open(sys.argv[1], 'rb'), payload_bytes=0, heap_bytes=65536)\n"
        "os.kill(enclave.process_id, signal.SIGKILL)\n"
        "os.waitid(os.P_PID, enclave.process_id, os.WEXITED | os.WNOWAIT)\n"
        "try:\n"
        "    enclave.stats()\n"
        "except EnclaveCrashed:\n"
        "    print('crashed')\n"
    )
    (tmp_path / "store").write_bytes(bytes(4096))
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    assert subprocess.run(command, capture_output=True, check=False, text=True).stdout == "crashed\n"


@pytest.mark.parametrize(
    "parameter",
    [
        Parameter(Kind.OUTPUT, Region.PAYLOAD, 0, 2**40),
        Parameter(Kind.OUTPUT, Region.PAYLOAD, 2**64 - 64, 128),
        Parameter(Kind.OUTPUT, Region.STORE, 0, 128),
        Parameter(Kind.INPUT, Region.PAYLOAD, 0, 128),
        Parameter(Kind.OUTPUT, Region.PAYLOAD, 0, 16),
    ],
)
def test_bad_parameter_is_refused_and_the_enclave_goes_on(store, parameter):
    with start(store) as enclave:
        with pytest.raises(ProtocolError, match="0xFFFF00"):
            enclave.call(Command.INFO, [parameter])
        assert enclave.stats().runs == 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="each side needs a processor of its own")
def test_calls_that_follow_one_another_find_the_enclave_awake(store):
    """It is the only place where somebody sees whether they do: answers are the same in any case."""
    with start(store) as enclave:
        own = os.sched_getaffinity(0)
        awake, end = 0, time.monotonic() + 60  # on a busy machine both sides sleep most of the time
        while awake < 20 and time.monotonic() < end:
            assert enclave.stats().runs == 0
            awake += bool(enclave._peer["looks"][0]) and os.sched_getaffinity(enclave.process_id) < own
        assert awake == 20
        assert os.sched_getaffinity(0) == own


def test_run_before_load_is_refused(store):
    with start(store) as enclave:
        payload = Parameter(Kind.INPUT, Region.PAYLOAD, 256, 0)
        results = Parameter(Kind.OUTPUT, Region.PAYLOAD, 256, 0)
        window = Parameter(Kind.INPUT, Region.STORE, 0, 0)
        with pytest.raises(ProtocolError, match="nothing is loaded"):
            enclave.prepare_run(bytes(64), payload, results, window)()


# --- State folder and executable -----------------------------------------------------------------------------------


def test_state_folder_is_for_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOISTER_STATE", str(tmp_path / "a" / "b"))
    folder = state_folder()
    assert folder == tmp_path / "a" / "b" / "local-enclave"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert state_folder() == folder


def test_state_folder_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.delenv("CLOISTER_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state_folder() == tmp_path / "xdg" / "cloister" / "local-enclave"
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert state_folder() == tmp_path / "home" / ".local" / "state" / "cloister" / "local-enclave"


def test_state_folder_that_cannot_be_made_is_the_users(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLOISTER_STATE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be made"):
        state_folder()


def test_missing_executable_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(local.importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(EnclaveUnavailable, match="missing") as error:
        local_info()
    assert "OpenSSL" in error.value.hint


def test_executable_that_does_not_start_is_unavailable(monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF no program")
    broken.chmod(0o755)
    monkeypatch.setattr(local, "binary_path", lambda: broken)
    with pytest.raises(EnclaveUnavailable, match="cannot be started"):
        local_info()


# --- Hostile and broken ones ---------------------------------------------------------------------------------------

MALFORMED = {
    "another magic": "answers[4] = lambda: respond(magic=b'CLRQ')",
    "another sequence": "answers[4] = lambda: respond(sequence=99)",
    "reserved word": "answers[4] = lambda: respond(zero=1)",
    "more than it was given": "answers[4] = lambda: respond(sizes=(65, 0, 0, 0))",
    "a parameter that was not there": "answers[4] = lambda: respond(sizes=(64, 0, 0, 1))",
    "noise": "answers[4] = lambda: stream.sendall(bytes(range(48)))",
}


@pytest.mark.parametrize("behaviour", MALFORMED.values(), ids=MALFORMED)
def test_malformed_response_is_a_protocol_error_and_the_end(behaviour, monkeypatch, tmp_path, store):
    fake.install(monkeypatch, tmp_path, behaviour)
    with start(store) as enclave:
        process_id = enclave.process_id
        with pytest.raises(ProtocolError):
            enclave.stats()
        assert_gone(process_id)


UNUSUAL = {
    "fewer bytes than the answer has": "answers[4] = lambda: respond(sizes=(63, 0, 0, 0))",
    "a result of its own": "answers[4] = lambda: respond(result=0xFFFF1234)",
}


@pytest.mark.parametrize("behaviour", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_response_is_a_protocol_error(behaviour, monkeypatch, tmp_path, store):
    fake.install(monkeypatch, tmp_path, behaviour)
    with start(store) as enclave, pytest.raises(ProtocolError):
        enclave.stats()


@pytest.mark.parametrize("behaviour", ["protocol=2", "kind=7"])
def test_unknown_enclave_is_refused(behaviour, monkeypatch, tmp_path, store):
    fake.install(monkeypatch, tmp_path, f"answers[1] = lambda: info({behaviour})")
    with pytest.raises(ProtocolError):
        start(store)


def test_response_in_pieces_is_put_together(monkeypatch, tmp_path, store):
    behaviour = (
        "def slow():\n"
        "    put(struct.pack('<8Q', *range(8)))\n"
        "    frame = struct.pack('<4sIII4Q', b'CLRS', seq, 0, 0, 64, 0, 0, 0)\n"
        "    for i in range(48):\n"
        "        stream.sendall(frame[i : i + 1])\n"
        "answers[4] = slow\n"
    )
    fake.install(monkeypatch, tmp_path, behaviour)
    with start(store) as enclave:
        assert enclave.stats().computing_ns == 7


ENDINGS = {
    "exit": ("(sys.stderr.write('first\\nit is all over\\n'), sys.exit(9))", r"status 9.*: first \| it is all over"),
    "abort": ("os.abort()", "SIGABRT"),
    "half a response": ("(stream.sendall(b'CLRS'), sys.exit(0))", "status 0"),
    "closed stream": ("(stream.shutdown(socket.SHUT_RDWR), sys.exit(3))", "status 3"),
}


@pytest.mark.parametrize(("ending", "says"), ENDINGS.values(), ids=ENDINGS)
def test_end_in_the_middle_of_a_call_is_a_crash(ending, says, monkeypatch, tmp_path, store):
    fake.install(monkeypatch, tmp_path, f"answers[4] = lambda: {ending}")
    with start(store) as enclave:
        process_id = enclave.process_id
        with pytest.raises(EnclaveCrashed, match=says):
            enclave.stats()
        assert_gone(process_id)


def test_enclave_that_does_not_listen_is_killed(monkeypatch, tmp_path, store):
    monkeypatch.setattr(local, "_END_SECONDS", 0.2)
    fake.install(monkeypatch, tmp_path, "answers[4] = lambda: (respond(sizes=(64, 0, 0, 0)), time.sleep(60))")
    with start(store) as enclave:
        process_id = enclave.process_id
        enclave.stats()
    assert_gone(process_id)
