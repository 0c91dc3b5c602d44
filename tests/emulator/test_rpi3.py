"""The machine `rpi3` for real: it works, and hides nothing. `CLOISTER_CACHE` may hold what an earlier run built."""

import base64
import gzip
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cloister
from cloister import emulator
from cloister.enclave.stream import StreamEnclave
from cloister.errors import EnclaveBusy, EnclaveCrashed
from cloister.protection import lower_target, protect_lowered
from tests.emulator.killing import kill_and_wait

pytestmark = [pytest.mark.emulator, pytest.mark.slow, pytest.mark.xdist_group("emulator")]

X = np.random.default_rng(7).uniform(-1, 1, (3, 3, 32, 32)).astype(np.float32)
NAME = "emulator:rpi3"
#: Memory of OP-TEE and its trusted applications on this board.
OPTEE_AT, OPTEE_BYTES = 0x10100000, 0x00F00000
LABEL = "no secure RAM: the normal world can read the inside"


@pytest.fixture(scope="module", autouse=True)
def _end():
    yield
    emulator.down("rpi3")


@pytest.fixture
def machine():
    emulator.up("rpi3")
    return emulator.instance("rpi3")


def key():
    return emulator.status("rpi3").start.info.public_key


def lowered(name, bits):
    target = cloister.load_target(f"zoo:{name}", input_shape=X.shape[1:], n_classes=10)
    return target, lower_target(target, bits=bits, calibration=X)


def outputs(path, enclave):
    with cloister.load(path, enclave) as session:
        return session.run(X), session.stats


@pytest.mark.parametrize(
    ("name", "bits", "inside"), [("resnet20", 8, "all"), ("vgg7", 8, "last:3"), ("resnet20", 32, "last:1")]
)
def test_bits_are_those_of_the_local_enclave(name, bits, inside, machine, tmp_path):
    path = tmp_path / "model.cloister"
    protect_lowered(lowered(name, bits)[1], path, inside=inside, board="rpi3", devices=["local", NAME])
    expected, _ = outputs(path, "local")
    got, stats = outputs(path, NAME)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))
    assert (stats.enclave, stats.board, stats.images) == ("optee", "rpi3", len(X))


def test_megabytes_stream_in_and_none_is_lost(machine, tmp_path):
    """All slices of VGG-16 go over the serial line, each sealed: one byte lost, and it would not open."""
    path = tmp_path / "model.cloister"
    protect_lowered(
        lowered("vgg16", 8)[1], path, inside="last:3", board="rpi3", budget_bytes=1 << 20, devices=["local", NAME]
    )
    expected, _ = outputs(path, "local")
    got, stats = outputs(path, NAME)
    np.testing.assert_array_equal(got, expected)
    assert stats.slice_bytes_opened > 1 << 18


def test_it_says_that_it_has_no_secure_ram(machine, tmp_path):
    path = tmp_path / "model.cloister"
    protected = protect_lowered(lowered("vgg7", 8)[1], path, inside="last:1", board="rpi3", devices=[NAME])
    assert LABEL in protected.manifest.plan.board.demonstration
    info = machine.status().start.info
    assert not info.hardening.hardware_isolation
    assert info.hardening.demonstration
    assert info.board == "rpi3"
    _, stats = outputs(path, NAME)
    assert LABEL in stats.planned_for.demonstration
    assert "without secure RAM: the normal world can read it" in stats.isolation
    words = [sys.executable, "-m", "cloister", "emulator", "status", "--machine", "rpi3"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "OP-TEE without secure RAM: the normal world can read it" in re.sub(r"\s+", " ", said)


def test_linux_reads_the_weights_that_are_inside(machine, tmp_path):
    """As root, in the memory of OP-TEE: what `virt` answers with a bus error."""
    path = tmp_path / "model.cloister"
    target, low = lowered("resnet20", 32)
    protect_lowered(low, path, inside="last:1", board="rpi3", devices=[NAME])
    # In a program, the weights of all units for one input lie side by side.
    secret = target.model.fc.weight[:8, 8].detach().numpy().tobytes()
    assert len(secret) == 32
    assert secret not in path.read_bytes()
    search = install_search(machine, tmp_path)
    assert machine.shell(f"{search} {secret.hex()}") == (0, "")
    with cloister.load(path, NAME) as session:
        session.run(X)
        status, found = machine.shell(f"{search} {secret.hex()}")
        assert status == 0
        (place, *_) = (int(line, 16) for line in found.split())
        assert OPTEE_AT <= place < OPTEE_AT + OPTEE_BYTES


def install_search(machine, tmp_path):
    """The command that searches OP-TEE's memory."""
    program = tmp_path / "search"
    source = Path(__file__).with_name("search_memory.c")
    words = [
        "aarch64-linux-gnu-gcc",
        "-O2",
        "-Wall",
        "-Werror",
        "-s",
        "-Wl,-z,max-page-size=4096",
        "-o",
        program,
        source,
    ]
    subprocess.run(words, check=True)
    text = base64.b64encode(gzip.compress(program.read_bytes())).decode()
    command = f"echo {text} | base64 -d | gunzip > /bin/search-memory && chmod +x /bin/search-memory"
    assert machine.shell(command) == (0, "")
    return f"/bin/search-memory {OPTEE_AT:#x} {OPTEE_BYTES}"


class Said:
    """Progress that keeps what it is told: why a saved state was of no use."""

    def __init__(self):
        self.texts = []

    def update(self, done, total, text):
        self.texts.append(text)


def test_the_key_in_the_storage_survives_down_and_up_and_a_kill(machine):
    first = key()
    emulator.down("rpi3")
    assert emulator.up("rpi3").start.restored
    assert key() == first
    kill_and_wait(machine)
    emulator.up("rpi3")
    assert key() == first
    # It is the storage that keeps it: without that there is another key.
    emulator.down("rpi3")
    (machine.folder / "storage.img").unlink()
    start = emulator.up("rpi3").start
    assert (start.restored, start.unsaved) == (False, "")
    other = key()
    assert other != first
    emulator.down("rpi3")
    said = Said()
    assert emulator.up("rpi3", progress=said).start.restored, said.texts
    assert key() == other


def test_the_next_client_waits_for_its_turn(machine):
    with StreamEnclave(emulator.connect("rpi3")), pytest.raises(EnclaveBusy, match=f"by process {os.getpid()}"):
        emulator.connect("rpi3")
    with StreamEnclave(emulator.connect("rpi3")) as enclave:
        assert enclave.info.public_key == key()


def test_a_client_that_goes_away_in_the_middle_leaves_the_line_usable(machine):
    link = emulator.connect("rpi3")
    link.stream.sendall(b"CLCK\xff\xff\x00\x00" + b"CLRQ" * 3)
    link.stream.close()
    link.close()
    with StreamEnclave(emulator.connect("rpi3")) as enclave:
        assert enclave.info.public_key == key()


def test_a_killed_machine_is_named_and_up_works_again(machine):
    with StreamEnclave(emulator.connect("rpi3")) as enclave:
        os.kill(enclave.process_id, signal.SIGKILL)
        with pytest.raises(EnclaveCrashed, match="the emulator has ended"):
            enclave.stats()
    assert emulator.up("rpi3").start.restored


def test_logs_of_both_worlds(machine):
    assert all(line.lstrip("\ufffd")[1:3] == "/T" for line in emulator.logs("rpi3", "optee").splitlines())
    assert "OP-TEE version" in emulator.logs("rpi3", "optee")
    assert "OP-TEE version" not in emulator.logs("rpi3")
