"""The emulator for real. `CLOISTER_CACHE` may hold what an earlier run fetched and built."""

import concurrent.futures
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cloister import emulator
from cloister.emulator import qemu, start
from cloister.emulator.machines import Images
from cloister.emulator.virt import Virt
from cloister.enclave.stream import StreamEnclave
from cloister.errors import EnclaveBusy, EnclaveCrashed, EnclaveUnavailable
from tests.emulator.killing import kill_and_wait

pytestmark = [pytest.mark.emulator, pytest.mark.xdist_group("emulator")]


@pytest.fixture(scope="module", autouse=True)
def _end():
    yield
    emulator.down()


@pytest.fixture
def machine():
    emulator.up()
    return emulator.instance()


def key():
    return emulator.status().start.info.public_key


def image_of(machine, **changes):
    """The machine with other images: a folder of firmware, a kernel, an initrd."""

    class Changed(Virt):
        def images(self, cache, tell, *, anew):
            return Images(**{**super().images(cache, tell, anew=anew)._asdict(), **changes})

    machine.machine = Changed()
    return machine


def test_it_is_a_trusted_application_that_answers(machine):
    status = machine.status()
    assert status.process_id
    assert status.start.info.kind == "optee"
    assert status.start.info.heap_bytes == machine.machine.profile.heap_bytes
    assert status.start.info.hardening.hardware_isolation
    with StreamEnclave(emulator.connect()) as enclave:
        assert enclave.info == status.start.info
        assert machine.status().clients == (os.getpid(),)
    assert machine.status().clients == ()


def test_linux_cannot_read_the_memory_of_the_trusted_application(machine):
    assert machine.shell("id -u") == (0, "0")
    # What OP-TEE shares with Linux can be read; its own memory, and that of its trusted applications, cannot.
    assert machine.shell("devmem 0x42000000")[0] == 0
    log = machine.log("optee")
    for address in ("0x0e100000", "0x0e17c000", "0x0e300000"):
        assert address in log
        status, said = machine.shell(f"devmem {address}")
        assert (status, said) == (128 + signal.SIGBUS, "Bus error")


def test_the_key_survives_down_and_up_restored_and_from_nothing(machine):
    first = key()
    emulator.down()
    assert emulator.up().start.restored
    assert key() == first
    for path in emulator_cache().glob("state-virt-*"):
        shutil.rmtree(path)
    emulator.down()
    assert not emulator.up().start.restored
    assert key() == first


def test_the_key_survives_a_machine_that_is_killed(machine):
    first = key()
    kill_and_wait(machine)
    emulator.up()
    assert key() == first


def test_two_who_share_a_saved_state_have_keys_of_their_own(machine, tmp_path, monkeypatch):
    first = key()
    monkeypatch.setenv("CLOISTER_STATE", str(tmp_path))
    try:
        assert not emulator.up().start.restored
        other = key()
        assert other != first
        emulator.down()
        # Both go on from one state, so what differs comes from the storage.
        assert emulator.up().start.restored
        assert key() == other
        emulator.down()
        monkeypatch.undo()
        emulator.down()
        assert emulator.up().start.restored
        assert key() == first
    finally:
        monkeypatch.setenv("CLOISTER_STATE", str(tmp_path))
        emulator.down()


def test_a_storage_without_a_key_is_not_used_with_a_saved_state(machine):
    """An `up` was ended after the storage was made and before the trusted application had answered."""
    emulator.down()
    machine.empty_mark.touch()
    assert not emulator.up().start.restored
    assert not machine.empty_mark.exists()


def test_another_storage_another_key(machine):
    first = key()
    emulator.down()
    storage = machine.folder / "storage.img"
    storage.rename(storage.with_suffix(".kept"))
    emulator.up()
    other = key()
    emulator.down()
    storage.with_suffix(".kept").rename(storage)
    emulator.up()
    assert other != first
    assert key() == first


def test_a_damaged_storage_is_named(machine):
    emulator.down()
    storage = machine.folder / "storage.img"
    good = storage.read_bytes()
    storage.write_bytes(bytes(len(good)))
    try:
        with pytest.raises(EnclaveUnavailable, match="storage of the emulator cannot be used") as caught:
            emulator.up()
        assert str(storage) in caught.value.hint
        assert machine.status().process_id is None
    finally:
        storage.write_bytes(good)


def emulator_cache():
    from cloister.emulator.cache import cache_folder

    return cache_folder() / "emulator"


def test_a_saved_state_that_does_not_fit_is_no_harm(machine):
    emulator.down()
    (state,) = emulator_cache().glob("state-virt-*/state")
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    assert not emulator.up().start.restored
    assert state.stat().st_size > len(whole) // 2


def test_a_saved_state_that_goes_away_is_no_harm(machine, monkeypatch):
    emulator.down()
    run = start._run

    def with_another_up(instance, arguments, saved):
        if saved:
            shutil.rmtree(saved)
        run(instance, arguments, saved)

    monkeypatch.setattr(start, "_run", with_another_up)
    assert not emulator.up().start.restored


def test_no_room_for_the_state_is_no_harm(machine, monkeypatch):
    emulator.down()
    for path in emulator_cache().glob("state-virt-*"):
        shutil.rmtree(path)
    save = qemu.save_state
    monkeypatch.setattr(qemu, "save_state", lambda folder, target: save(folder, Path("/dev/full")))
    status = emulator.up()
    assert "cannot be written" in status.start.unsaved
    with StreamEnclave(emulator.connect()) as enclave:
        enclave.stats()
    emulator.down()
    monkeypatch.undo()
    assert emulator.up().start.unsaved == ""


def test_a_killed_machine_is_named_and_up_works_again(machine):
    with StreamEnclave(emulator.connect()) as enclave:
        os.kill(enclave.process_id, signal.SIGKILL)
        with pytest.raises(EnclaveCrashed, match="the emulator has ended") as caught:
            enclave.stats()
    assert "cloister emulator up" in caught.value.hint
    assert machine.status().process_id is None
    with pytest.raises(EnclaveUnavailable, match="not running"):
        emulator.connect()
    assert emulator.up().process_id
    with StreamEnclave(emulator.connect()) as enclave:
        enclave.stats()


def test_a_machine_killed_during_a_call(machine):
    with StreamEnclave(emulator.connect()) as enclave, concurrent.futures.ThreadPoolExecutor() as pool:
        os.kill(enclave.process_id, signal.SIGSTOP)
        call = pool.submit(enclave.stats)
        time.sleep(0.2)
        assert not call.done()
        os.kill(enclave.process_id, signal.SIGKILL)
        with pytest.raises(EnclaveCrashed, match="during `stats`"):
            call.result(timeout=20)
    emulator.up()


def test_two_clients_at_once(machine):
    both_are_served = threading.Barrier(2)

    def answers(_):
        with StreamEnclave(emulator.connect()) as enclave:
            both_are_served.wait(timeout=20)
            return {(enclave.info.public_key, enclave.stats().runs) for _ in range(20)}

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(answers, range(2))) == [{(key(), 0)}] * 2


def test_more_clients_than_ports(machine):
    links = [emulator.connect() for _ in range(machine.machine.n_ports)]
    with pytest.raises(EnclaveBusy, match=f"all 4 ports of the emulator are taken, by process {os.getpid()}"):
        emulator.connect()
    for link in links:
        link.stream.close()
        link.close()
    with StreamEnclave(emulator.connect()) as enclave:
        enclave.stats()


def test_a_client_that_goes_away_in_the_middle_leaves_the_port_usable(machine):
    for _ in range(3):
        link = emulator.connect()
        link.stream.sendall(b"CLCK\xff\xff\x00\x00" + b"CLRQ" * 3)
        link.stream.close()
        link.close()
    with StreamEnclave(emulator.connect()) as enclave:
        assert enclave.info.public_key == key()


def test_two_ups_at_once(machine):
    emulator.down()
    code = "from cloister import emulator; print(emulator.up().process_id)"
    words = [sys.executable, "-c", code]
    ups = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    processes = {up.communicate(timeout=120)[0] for up in ups}
    assert [up.returncode for up in ups] == [0, 0]
    assert processes == {f"{machine.status().process_id}\n"}


def interrupted_up(machine, number):
    """Start it from nothing in a process of its own, and end that with a signal while the machine boots."""
    emulator.down()

    def usual():  # a test in the background, or under nohup, inherits others
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    words = [sys.executable, "-m", "cloister", "emulator", "up"]
    machine.empty_mark.touch()
    up = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=usual)
    while not qemu.process_id(machine.folder):
        time.sleep(0.02)
    up.send_signal(number)
    return up.wait(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up_that_is_ended_leaves_nothing_running(machine, number):
    assert interrupted_up(machine, number) == 128 + number
    assert qemu.process_id(machine.folder) is None
    assert emulator.up().process_id


def test_what_a_killed_up_leaves_is_not_used(machine):
    interrupted_up(machine, signal.SIGKILL)
    left = qemu.process_id(machine.folder)
    assert emulator.status().process_id is None
    assert emulator.status().unready_process_id == left
    with pytest.raises(EnclaveUnavailable, match="not running"):
        emulator.connect()
    assert emulator.up().process_id not in (None, left)


def test_down_ends_what_a_killed_up_leaves(machine):
    interrupted_up(machine, signal.SIGKILL)
    words = [sys.executable, "-m", "cloister", "emulator"]
    said = subprocess.run([*words, "status"], capture_output=True, text=True, check=True).stdout
    assert "not ready" in said
    assert str(qemu.process_id(machine.folder)) in said
    subprocess.run([*words, "down"], capture_output=True, check=True)
    assert qemu.process_id(machine.folder) is None


def initrd_with(tmp_path, change):
    """The initrd, with the bytes of the trusted application changed."""
    from cloister.emulator.cache import Cache

    images = Virt().images(Cache(emulator_cache(), lambda _: None), lambda _: None, anew=False)
    (application,) = images.initrd.parent.glob("*.ta")
    whole, part = images.initrd.read_bytes(), application.read_bytes()
    assert whole.count(part) == 1
    (tmp_path / "initrd.cpio").write_bytes(change(whole, application.name.encode(), part))
    return tmp_path / "initrd.cpio"


@pytest.fixture
def other(machine, tmp_path):
    """Starts a machine with another initrd, without touching the cache's saved states of the good one."""
    emulator.down()
    yield lambda change: image_of(machine, initrd=initrd_with(tmp_path, change))
    machine.down()


def test_a_changed_trusted_application_is_named(other):
    changed = other(lambda whole, _, part: whole.replace(part, part[:-100] + bytes([part[-100] ^ 1]) + part[-99:]))
    with pytest.raises(EnclaveUnavailable, match="signature of the trusted application") as caught:
        emulator.start.bring_up(changed, fresh=False, progress=None)
    assert "cloister emulator up --fresh" in caught.value.hint
    assert changed.status().process_id is None


def test_an_absent_trusted_application_is_named(other):
    changed = other(lambda whole, name, _: whole.replace(name, b"0" + name[1:]))
    with pytest.raises(EnclaveUnavailable, match="not installed") as caught:
        emulator.start.bring_up(changed, fresh=False, progress=None)
    assert "cloister emulator up --fresh" in caught.value.hint


def test_a_folder_with_a_long_and_odd_name(tmp_path, monkeypatch):
    folder = tmp_path / ("long, and odd 'name' $x " * 6)
    monkeypatch.setenv("CLOISTER_STATE", str(folder))
    try:
        assert len(str(emulator.instance().folder)) > 108
        assert emulator.up().process_id
        with StreamEnclave(emulator.connect()) as enclave:
            enclave.stats()
    finally:
        emulator.down()


def test_counting_is_a_machine_of_its_own(machine):
    try:
        status = emulator.up(counting=True)
        assert status.folder != machine.status().folder
        assert emulator.up(counting=True).process_id == status.process_id
        emulator.down(counting=True)
        assert emulator.up(counting=True).start.restored
    finally:
        emulator.down(counting=True)
    assert machine.status().process_id


def test_logs(machine):
    emulator.down()
    emulator.up()
    assert "BL31" in emulator.logs()
    assert "TEE" in emulator.logs(world="optee") or "TC" in emulator.logs(world="optee")
