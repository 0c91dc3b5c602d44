"""The client of an enclave behind a byte stream, against `bridge.py` with the real trusted application behind it."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest

from cloister.bundle.keys import recipients
from cloister.enclave import stream
from cloister.enclave.connect import enclave_info
from cloister.enclave.local import local_info
from cloister.enclave.session import load
from cloister.enclave.wire import Command
from cloister.errors import (
    BundleError,
    EnclaveBusy,
    EnclaveCrashed,
    EnclaveError,
    EnclaveOutOfMemory,
    EnclaveUnavailable,
    NotForThisDevice,
    ProtocolError,
)
from tests import oracle
from tests.bundle.sample import images, make_graph, make_sample, new_device
from tests.enclave.bridge import PAGE, Bridge

BUDGETS = [None, 9000, 8000]


@pytest.fixture
def through(monkeypatch):
    """Makes `optee` the bridge that is given."""

    def use(bridge: Bridge) -> Bridge:
        monkeypatch.setattr("cloister.enclave.optee.open_link", lambda: bridge.link)
        return bridge

    return use


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    local = recipients(["local"])
    return {b: make_sample(budget_bytes=b).write(folder / f"{b}.cloister", local) for b in BUDGETS}


def expected(x):
    return oracle.run(make_graph(0), x)["scores"]


# --- What goes through -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("window_bytes", [None, 1])
def test_results_are_the_oracles(budget, window_bytes, bundles, through):
    bridge = through(Bridge())
    x = images(5)
    with load(bundles[budget], "optee", window_bytes=window_bytes) as session:
        for _ in range(2):
            np.testing.assert_array_equal(session.run(x), expected(x))
        assert session.stats.images == 10
        assert session.stats.slices_opened > 0
    assert bridge.closed == 1


def test_calls_keep_to_what_is_shared(bundles, through):
    shared_bytes = 5 * PAGE
    bridge = through(Bridge(shared_bytes=shared_bytes))
    x = images(100)
    with load(bundles[8000], "optee") as session:
        np.testing.assert_array_equal(session.run(x), expected(x))
    assert bridge.calls.count(Command.RUN) > 2
    assert PAGE < bridge.largest_call_bytes <= shared_bytes


def test_too_little_shared_is_told_with_the_numbers(bundles, through):
    bridge = through(Bridge(shared_bytes=3 * PAGE))
    with pytest.raises(EnclaveOutOfMemory, match=r"12 KiB along, but the largest slice has") as error:
        load(bundles[None], "optee")
    assert "--board" in error.value.hint
    assert bridge.closed == 1


def test_store_goes_in_pieces(bundles, through, monkeypatch):
    monkeypatch.setattr(stream, "_STORE_PIECE_BYTES", 100)
    bridge = through(Bridge())
    x = images(2)
    with load(bundles[8000], "optee") as session:
        np.testing.assert_array_equal(session.run(x), expected(x))
    assert bridge.calls.count(Command.STORE) > 10


def test_info_needs_no_bundle(through):
    bridge = through(Bridge())
    assert enclave_info("optee").public_key == local_info().public_key
    assert bridge.calls == [Command.INFO]
    assert bridge.closed == 1


# --- Hello -----------------------------------------------------------------------------------------------------------


def test_what_an_earlier_client_left_is_skipped(bundles, through):
    foreign = struct.pack("<4sI16sIIQ8x", b"CLHO", 1, os.urandom(16), 0, 0, 64)
    through(Bridge(before=os.urandom(5000) + foreign + b"CLHO" + os.urandom(7)))
    with load(bundles[None], "optee") as session:
        x = images(1)
        np.testing.assert_array_equal(session.run(x), expected(x))


def test_hello_that_is_lost_is_said_again(through, monkeypatch):
    monkeypatch.setattr(stream, "_PATIENCE_SECONDS", 0.5)
    bridge = through(Bridge())
    bridge.skip_hellos = 2
    assert enclave_info("optee").kind == "local"


def test_host_that_dies_at_the_start_is_told_with_what_it_said(through):
    bridge = through(Bridge())
    bridge.end()
    with pytest.raises(EnclaveUnavailable, match="its last words"):
        enclave_info("optee")
    assert bridge.closed == 1


def test_a_call_takes_few_images_so_that_others_need_not_wait_long(bundles, through):
    bridge = through(Bridge())
    with load(bundles[None], "optee") as session:
        session.run(images(20))
    assert bridge.calls.count(Command.RUN) == 3


def test_silence_is_told(through, monkeypatch):
    monkeypatch.setattr(stream, "_PATIENCE_SECONDS", 0.02)
    bridge = through(Bridge())
    bridge.skip_hellos = 100
    with pytest.raises(EnclaveUnavailable, match="expected an answer from cloister-host"):
        enclave_info("optee")
    assert bridge.closed == 1


@pytest.mark.parametrize(
    ("result", "error", "says"),
    [
        (0xFFFF0008, EnclaveUnavailable, "not installed"),
        (0xFFFF000F, EnclaveUnavailable, "signature"),
        (0xFFFF000C, EnclaveOutOfMemory, "no memory left"),
        (0xFFFF000D, EnclaveBusy, "as many sessions as it can"),
        (0xFFFF000E, EnclaveUnavailable, "tee-supplicant"),
        (0xFFFF1234, EnclaveUnavailable, "0xFFFF1234, origin 3"),
    ],
)
def test_session_that_does_not_open_is_told_with_the_fix(result, error, says, through):
    bridge = through(Bridge())
    bridge.hello = (result, 3)
    with pytest.raises(error, match=says) as raised:
        enclave_info("optee")
    assert raised.value.hint == "install it again"
    assert bridge.closed == 1


def test_application_of_another_version_is_told_with_the_fix(through):
    bridge = through(Bridge())
    bridge.version = b"cloister 99.0"
    with pytest.raises(EnclaveUnavailable, match=r"found the one of cloister 99.0") as raised:
        enclave_info("optee")
    assert raised.value.hint == "install it again"


# --- What fails ------------------------------------------------------------------------------------------------------


def test_bundle_for_another_device_is_refused(tmp_path, through):
    through(Bridge())
    path = make_sample().write(tmp_path / "foreign.cloister", [new_device()])
    with pytest.raises(NotForThisDevice):
        load(path, "optee")


def test_enclave_that_goes_away_is_a_crash_and_the_next_one_works(bundles, through):
    bridge = through(Bridge())
    session = load(bundles[None], "optee")
    bridge.end()
    with pytest.raises(EnclaveCrashed, match="its last words") as raised:
        session.run(images(1))
    assert raised.value.hint == "start it again"
    with pytest.raises(EnclaveError, match="closed"):
        session.run(images(1))
    session.close()
    assert bridge.closed == 1
    through(Bridge())
    with load(bundles[None], "optee") as again:
        np.testing.assert_array_equal(again.run(images(1)), expected(images(1)))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda answer: b"XXXX" + answer[4:], ProtocolError),
        (lambda answer: answer[:4] + struct.pack("<I", 77) + answer[8:], ProtocolError),
        (lambda answer: answer[:16] + struct.pack("<Q", 1 << 40) + answer[24:], ProtocolError),
        (lambda answer: answer[:8] + struct.pack("<I", 0xFFFF3024) + answer[12:48], EnclaveCrashed),
        (lambda answer: answer[:8] + struct.pack("<I", 0xFFFF000D) + answer[12:48], EnclaveBusy),
        (lambda answer: answer[:8] + struct.pack("<I", 0xFFFF3071) + answer[12:48], BundleError),
    ],
)
def test_bad_answer_is_named(change, error, bundles, through):
    bridge = through(Bridge())
    with load(bundles[None], "optee") as session:
        bridge.behave = lambda command, answer: change(answer) if command == Command.RUN else answer
        with pytest.raises(error):
            session.run(images(1))
