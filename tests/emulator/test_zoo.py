"""Every zoo model in the emulated OP-TEE gives the bits that the local enclave gives."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import cloister
from cloister import emulator, zoo
from cloister.errors import EnclaveCrashed, EnclaveOutOfMemory, PlanError
from cloister.protection import lower_target, protect_lowered

pytestmark = [pytest.mark.emulator, pytest.mark.xdist_group("emulator")]

BOARD = "qemu-virt"
X = np.random.default_rng(7).uniform(-1, 1, (3, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def _machine():
    emulator.up()
    yield
    emulator.down()


@pytest.fixture(scope="module")
def lowered():
    """Models as operations, each made once."""
    made = {}

    def get(name, bits):
        if (name, bits) not in made:
            target = cloister.load_target(f"zoo:{name}", input_shape=X.shape[1:], n_classes=10)
            images = np.random.default_rng(1).uniform(-1, 1, (32, *X.shape[1:])).astype(np.float32)
            made[name, bits] = lower_target(target, bits=bits, calibration=images)
        return made[name, bits]

    return get


def outputs(path, enclave):
    with cloister.load(path, enclave) as session:
        return session.run(X), session.stats


@pytest.mark.parametrize("inside", ["last:1", "last:3", "all"])
@pytest.mark.parametrize("name", zoo.NAMES)
@pytest.mark.parametrize("bits", [8, 32])
def test_bits_are_those_of_the_local_enclave(bits, name, inside, lowered, tmp_path):
    path = tmp_path / "model.cloister"
    protect_lowered(lowered(name, bits), path, inside=inside, board=BOARD, devices=["local", "emulator"])
    expected, _ = outputs(path, "local")
    got, stats = outputs(path, "emulator")
    assert (stats.enclave, stats.images) == ("optee", len(X))
    assert 0 < stats.inside_peak_bytes <= stats.inside_bytes
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("suite", ["AES-256-GCM", "ChaCha20-Poly1305"])
def test_both_suites_stream(suite, lowered, tmp_path):
    path = tmp_path / "model.cloister"
    low = lowered("resnet20", 8)
    protect_lowered(low, path, inside="all", budget_bytes=128 << 10, suite=suite, devices=["local", "emulator"])
    expected, _ = outputs(path, "local")
    got, stats = outputs(path, "emulator")
    assert stats.slices_opened > len(cloister.load(path).bundle.manifest.slices)
    np.testing.assert_array_equal(got, expected)


def test_heap_too_small_is_refused_at_load_with_both_numbers(lowered, tmp_path):
    path = tmp_path / "model.cloister"
    low = lowered("vgg16", 8)
    with pytest.raises(PlanError, match=r"at most 8372224 bytes .* got 9437184"):
        protect_lowered(low, path, inside="all", board=BOARD, budget_bytes=9 << 20, devices=["emulator"])
    protect_lowered(low, path, inside="all", budget_bytes=9 << 20, devices=["emulator"])
    with pytest.raises(EnclaveOutOfMemory, match=r"needs \d+ bytes, but the enclave.s heap of 8388608 bytes"):
        cloister.load(path, "emulator")


def test_two_clients_at_once_get_their_own_answers(lowered, tmp_path):
    paths = {}
    for name in ("vgg7", "resnet20"):
        paths[name] = tmp_path / f"{name}.cloister"
        protect_lowered(lowered(name, 8), paths[name], inside="all", board=BOARD, devices=["local", "emulator"])
    expected = {name: outputs(path, "local")[0] for name, path in paths.items()}
    got = {name: [] for name in paths}

    def client(name):
        with cloister.load(paths[name], "emulator") as session:
            for _ in range(5):
                got[name].append(session.run(X))

    threads = [threading.Thread(target=client, args=(name,)) for name in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, results in got.items():
        assert len(results) == 5
        for result in results:
            np.testing.assert_array_equal(result, expected[name])


def test_guest_killed_during_a_call_is_a_clear_error_and_up_works_again(lowered, tmp_path):
    path = tmp_path / "model.cloister"
    protect_lowered(lowered("vgg16", 8), path, inside="all", board=BOARD, devices=["local", "emulator"])
    session = cloister.load(path, "emulator")

    def kill():
        time.sleep(0.3)
        os.kill(emulator.status().process_id, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(EnclaveCrashed) as raised:
        session.run(np.repeat(X, 100, axis=0))
    killer.join()
    session.close()
    assert "cloister emulator up" in raised.value.hint
    emulator.up()
    np.testing.assert_array_equal(outputs(path, "emulator")[0], outputs(path, "local")[0])
