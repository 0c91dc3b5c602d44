"""Frames and blocks are what the protocol's page says, and nothing else is taken for them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.enclave import wire
from cloister.enclave.wire import Command, Kind, Parameter, Region
from cloister.errors import (
    BundleError,
    CloisterError,
    EnclaveBusy,
    EnclaveCrashed,
    EnclaveOutOfMemory,
    NotForThisDevice,
    ProtocolError,
)

words = st.integers(0, 2**32 - 1)
longs = st.integers(0, 2**64 - 1)
parameters = st.builds(Parameter, st.sampled_from(Kind), st.sampled_from(Region), longs, longs)


def response(sequence, result, sizes, magic=b"CLRS", zero=0):
    return struct.pack("<4sIII4Q", magic, sequence, result, zero, *sizes)


@given(words, st.sampled_from(Command), st.lists(parameters, max_size=4))
def test_request_is_what_the_page_says(sequence, command, given):
    frame = wire.pack_request(sequence, command, given)
    assert len(frame) == wire.REQUEST_BYTES
    assert struct.unpack_from("<4sIII", frame) == (b"CLRQ", sequence, command, 0)
    read = [struct.unpack_from("<IIQQ", frame, 16 + 24 * i) for i in range(4)]
    assert read == [tuple(p) for p in given] + [(0, 0, 0, 0)] * (4 - len(given))


@given(words, words.filter(bool), st.tuples(*[longs] * 4))
def test_error_response_reads_back(sequence, result, sizes):
    assert wire.unpack_response(response(sequence, result, sizes), sequence, []) == (result, sizes)


@given(words, st.lists(parameters, max_size=4), st.data())
def test_response_uses_no_more_than_it_was_given(sequence, given, data):
    limits = [p.size for p in given] + [0] * (4 - len(given))
    sizes = tuple(data.draw(st.integers(0, limit)) for limit in limits)
    assert wire.unpack_response(response(sequence, 0, sizes), sequence, given) == (0, sizes)
    index = data.draw(st.integers(0, 3))
    if limits[index] < 2**64 - 1:
        too_much = list(sizes)
        too_much[index] = limits[index] + 1
        with pytest.raises(ProtocolError, match="bytes of parameters"):
            wire.unpack_response(response(sequence, 0, too_much), sequence, given)


@given(st.binary(min_size=wire.RESPONSE_BYTES, max_size=wire.RESPONSE_BYTES))
def test_noise_is_no_response(frame):
    with pytest.raises(ProtocolError):
        wire.unpack_response(frame, 7, [])


@pytest.mark.parametrize(
    "frame",
    [
        response(7, 0, [0] * 4, magic=b"CLRQ"),
        response(7, 0, [0] * 4, zero=1),
        response(8, 0, [0] * 4),
    ],
)
def test_foreign_frame_is_no_response(frame):
    with pytest.raises(ProtocolError):
        wire.unpack_response(frame, 7, [])


RESULTS = {
    0xFFFF0004: ProtocolError,
    0xFFFF000D: EnclaveBusy,
    0xFFFF3024: EnclaveCrashed,
    0xFFFF0001: NotForThisDevice,
    0xFFFF3071: BundleError,
    0xFFFF0005: BundleError,
    0xFFFF000A: BundleError,
    0xFFFF000C: EnclaveOutOfMemory,
    0xFFFF0006: ProtocolError,
    0xFFFF0007: ProtocolError,
    0xFFFF0009: ProtocolError,
    0xFFFF0010: ProtocolError,
}


@given(words, st.sampled_from(Command))
def test_every_result_but_success_is_a_named_error(result, command):
    if result == 0:
        wire.check_result(result, command)
        return
    with pytest.raises(RESULTS.get(result, ProtocolError), match=f"{result:08X}") as error:
        wire.check_result(result, command)
    assert error.value.exit_code == 3


@pytest.mark.parametrize("result", RESULTS)
def test_known_results_have_their_error(result):
    with pytest.raises(CloisterError) as error:
        wire.check_result(result, Command.LOAD)
    assert type(error.value) is RESULTS[result]
    assert "`load`" in str(error.value)


def info(protocol=1, kind=1, flags=0, zero=0, heap=1 << 16, version=b"cloister 0.1.0", board=b""):
    key = bytes(range(32))
    return struct.pack("<IIIIQ32s64s32s8x", protocol, kind, flags, zero, heap, key, version, board)


def test_info_names_its_flags_in_the_pages_order():
    names = wire.Hardening.__struct_fields__
    for bit, name in enumerate(names):
        hardening = wire.unpack_info(info(flags=1 << bit)).hardening
        assert [n for n in names if getattr(hardening, n)] == [name]


@given(st.integers(0, 255))
def test_local_enclave_never_claims_hardware(flags):
    read = wire.unpack_info(info(flags=flags))
    assert read.kind == "local"
    assert read.isolation == "process isolation, not hardware"


def test_info_reads_back():
    read = wire.unpack_info(info(kind=2, flags=64, board=b"qemu-virt"))
    assert (read.kind, read.heap_bytes, read.board) == ("optee", 1 << 16, "qemu-virt")
    assert (read.public_key, read.version) == (bytes(range(32)), "cloister 0.1.0")
    assert wire.unpack_info(info()).board == ""


NO_SECURE_RAM = "OP-TEE without secure RAM: the normal world can read it"
ISOLATION = {
    0: NO_SECURE_RAM,
    64: "hardware isolation",
    128: f"{NO_SECURE_RAM}, a demonstration",
    192: "hardware isolation, a demonstration",
}


@pytest.mark.parametrize("flags", ISOLATION)
def test_optee_says_what_its_isolation_is_worth(flags):
    assert wire.unpack_info(info(kind=2, flags=flags)).isolation == ISOLATION[flags]


@pytest.mark.parametrize("bad", [{"protocol": 2}, {"kind": 0}, {"kind": 3}, {"zero": 1}])
def test_info_of_another_kind_is_refused(bad):
    with pytest.raises(ProtocolError):
        wire.unpack_info(info(**bad))


def test_blocks_have_the_pages_layout():
    block = wire.pack_load(b"i" * 16, b"m" * 32, b"e" * 32, b"k" * 48, 2)
    assert block == b"i" * 16 + b"m" * 32 + b"e" * 32 + b"k" * 48 + b"\2" + bytes(7)
    assert len(block) == wire.LOAD_BYTES
    assert wire.pack_open(3, 4) == struct.pack("<4I", 3, 4, 0, 0)
    block = wire.pack_run(1, 2, 3, 4, resume=True)
    assert struct.unpack("<16I", block) == (1, 2, 3, 4, 1, *[0] * 11)
    assert wire.unpack_loaded(struct.pack("<IIQQ8x", 1, 2, 3, 4)) == wire.Loaded(1, 2, 3, 4)
    assert wire.unpack_stats(struct.pack("<8Q", *range(8))) == wire.EnclaveStats(*range(8))


@given(st.tuples(*[words] * 3))
def test_run_states(answer):
    block = struct.pack("<5I3I32x", 0, 0, 0, 0, 0, *answer)
    state, needed, done = answer
    if state == 0:
        assert wire.unpack_run(block) is None
    elif state == 1:
        assert wire.unpack_run(block) == wire.RunState(needed, done)
    else:
        with pytest.raises(ProtocolError):
            wire.unpack_run(block)
