"""The wire protocol's frames and blocks, and what its results mean. Format: `docs/spec/wire.md`."""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from cloister.boards import Board, load_boards
from cloister.errors import (
    BundleError,
    CloisterError,
    EnclaveBusy,
    EnclaveCrashed,
    EnclaveOutOfMemory,
    NotForThisDevice,
    ProtocolError,
)

__all__ = [
    "INFO_BYTES",
    "LOADED_BYTES",
    "LOAD_BYTES",
    "NO_PARAMETER",
    "OPEN_BYTES",
    "PROTOCOL_VERSION",
    "REQUEST_BYTES",
    "RESPONSE_BYTES",
    "RUN_BYTES",
    "STATS_BYTES",
    "Command",
    "EnclaveInfo",
    "EnclaveStats",
    "Hardening",
    "Kind",
    "Loaded",
    "Parameter",
    "Region",
    "RunState",
    "check_result",
    "pack_load",
    "pack_open",
    "pack_request",
    "pack_run",
    "unpack_info",
    "unpack_loaded",
    "unpack_response",
    "unpack_run",
    "unpack_sizes",
    "unpack_stats",
]

PROTOCOL_VERSION = 1
REQUEST_BYTES = 112
RESPONSE_BYTES = 48
INFO_BYTES = 160
LOAD_BYTES = 136
LOADED_BYTES = 32
RUN_BYTES = 64
OPEN_BYTES = 16
STATS_BYTES = 64
N_PARAMETERS = 4

_REQUEST_HEAD = struct.Struct("<4sIII")
_PARAMETER = struct.Struct("<IIQQ")
_RESPONSE = struct.Struct("<4sIII4Q")
_INFO = struct.Struct("<IIIIQ32s64s32s8x")
_LOAD = struct.Struct("<16s32s32s48sII")
_LOADED = struct.Struct("<IIQQ8x")
_RUN = struct.Struct("<8I32x")
_OPEN = struct.Struct("<IIII")
_STATS = struct.Struct("<8Q")
_DONE, _NEEDS_SLICE = 0, 1


class Command(enum.IntEnum):
    """What the enclave is asked to do."""

    INFO = 1
    LOAD = 2
    RUN = 3
    STATS = 4
    OPEN = 5
    #: Answered by `cloister-host`, see "Over a byte stream".
    STORE = 0x80000001
    OUTSIDE_LOAD = 0x80000002
    OUTSIDE_RUN = 0x80000003
    CLOCK = 0x80000004
    SETTLE = 0x80000005


class Kind(enum.IntEnum):
    """Direction of a parameter, seen from the enclave."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2
    BOTH = 3


class Region(enum.IntEnum):
    """Memory that a parameter lies in."""

    NONE = 0
    PAYLOAD = 1
    STORE = 2


class Parameter(NamedTuple):
    """One of a request's four parameters: a run of bytes in shared memory."""

    kind: Kind
    region: Region
    offset: int
    size: int


NO_PARAMETER = Parameter(Kind.NONE, Region.NONE, 0, 0)


def pack_request(sequence: int, command: Command, parameters: Sequence[Parameter]) -> bytes:
    """A request frame.

    Args:
        sequence: the request's number, which its response repeats.
        command: what to do.
        parameters: at most four; the rest is filled with none.
    """
    filled = [*parameters, *[NO_PARAMETER] * (N_PARAMETERS - len(parameters))]
    head = _REQUEST_HEAD.pack(b"CLRQ", sequence, command, 0)
    return head + b"".join(_PARAMETER.pack(*parameter) for parameter in filled)


def unpack_sizes(frame: bytes) -> tuple[int, int, int, int]:
    """The bytes used of each parameter, from a response frame that was found good."""
    *_, first, second, third, fourth = _RESPONSE.unpack(frame)
    return first, second, third, fourth


def unpack_response(frame: bytes, sequence: int, parameters: Sequence[Parameter]) -> tuple[int, tuple[int, ...]]:
    """Check a response frame.

    Args:
        frame: 48 bytes.
        sequence: the request's number.
        parameters: the request's parameters.

    Returns:
        The `TEE_Result`, and the bytes used of each parameter.

    Raises:
        ProtocolError: the frame is no response to this request.
    """
    magic, answered, result, zero, *sizes = _RESPONSE.unpack(frame)
    if magic != b"CLRS" or zero != 0:
        raise ProtocolError(f"expected a response from the enclave, but got a frame that starts with {frame[:16]!r}")
    if answered != sequence:
        raise ProtocolError(f"expected the response to request {sequence}, but got the one to request {answered}")
    allowed = [*(p.size for p in parameters), *[0] * (N_PARAMETERS - len(parameters))]
    # A size may exceed what was given only to say how much is needed, together with an error.
    if result == 0 and any(size > limit for size, limit in zip(sizes, allowed, strict=True)):
        raise ProtocolError(f"the enclave says that it used {sizes} bytes of parameters that have {allowed}")
    return result, tuple(sizes)


# --- Results -----------------------------------------------------------------------------------------------------

_RESULTS: dict[int, tuple[type[CloisterError], str, str | None]] = {
    0xFFFF0001: (
        NotForThisDevice,
        "the content key does not open: the bundle is for another device, or was changed",
        "protect the model for this device's public key",
    ),
    0xFFFF3071: (BundleError, "the inside program or a slice was changed", "get the bundle again from its maker"),
    0xFFFF0005: (BundleError, "the inside program breaks a rule of its format", "protect the model again"),
    0xFFFF000A: (
        BundleError,
        "the inside program has a format or a cipher suite that this enclave does not know",
        "use the enclave of the version of cloister that made the bundle",
    ),
    0xFFFF000C: (
        EnclaveOutOfMemory,
        "the inside needs more memory than the enclave or its own budget allows",
        "protect the model with a smaller --budget",
    ),
    0xFFFF000D: (EnclaveBusy, "it is busy with other clients", "try again when one of them is done"),
    0xFFFF3024: (EnclaveCrashed, "the trusted application has ended", "load the bundle again"),
    0xFFFF0004: (ProtocolError, "the parameters exceed the shared memory", "protect the model for this --board"),
    0xFFFF0006: (ProtocolError, "a parameter has the wrong kind, size or value", None),
    0xFFFF0007: (ProtocolError, "nothing is loaded, or nothing is to be resumed", None),
    0xFFFF0009: (ProtocolError, "no such command", None),
    0xFFFF0010: (ProtocolError, "an output does not fit", None),
}


def check_result(result: int, command: Command) -> None:
    """Raise the error that a result stands for.

    Args:
        result: a `TEE_Result`.
        command: what was asked.

    Raises:
        NotForThisDevice: the content key does not open.
        BundleError: what is sealed was changed, or is malformed.
        EnclaveOutOfMemory: the inside does not fit.
        ProtocolError: any other failure.
    """
    if result == 0:
        return
    error, meaning, hint = _RESULTS.get(result, (ProtocolError, "a failure of its own", None))
    raise error(f"the enclave refused `{command.name.lower()}`: {meaning} (0x{result:08X})", hint)


# --- Blocks of the commands --------------------------------------------------------------------------------------


class Hardening(msgspec.Struct, frozen=True, kw_only=True):
    """What protects the enclave from the rest of the machine, as it says itself.

    Attributes:
        not_dumpable: other processes of the same user cannot trace it or read its memory.
        no_core_files: a crash writes no memory to disk.
        no_new_privileges: it can gain no privileges.
        memory_locked: its memory is never swapped to disk.
        memory_hidden: its memory is out of the kernel's own reach (`memfd_secret`).
        system_call_filter: it can make only the few system calls that it needs.
        hardware_isolation: the processor keeps the rest of the machine out.
        demonstration: whoever has the board can read or replace the inside.
    """

    not_dumpable: bool
    no_core_files: bool
    no_new_privileges: bool
    memory_locked: bool
    memory_hidden: bool
    system_call_filter: bool
    hardware_isolation: bool
    demonstration: bool


class EnclaveInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an enclave says of itself.

    Attributes:
        kind: `local` (a process) or `optee`.
        isolation: what keeps the rest of the machine out, in words.
        hardening: the same in detail.
        heap_bytes: the most memory that it may allocate.
        public_key: the device's X25519 public key, 32 bytes.
        version: its version text.
        board: the board that it was built for, as in the board profiles; empty for a local process.
    """

    kind: str
    isolation: str
    hardening: Hardening
    heap_bytes: int
    public_key: bytes
    version: str
    board: str = ""


_KINDS = {1: "local", 2: "optee"}


def unpack_info(block: bytes) -> EnclaveInfo:
    """Read the answer to `info`.

    Raises:
        ProtocolError: another protocol version, or an unknown kind of enclave.
    """
    protocol, kind, flags, zero, heap_bytes, public_key, version, board = _INFO.unpack(block)
    if protocol != PROTOCOL_VERSION:
        raise ProtocolError(
            f"expected wire protocol {PROTOCOL_VERSION}, but the enclave speaks {protocol}",
            "use an enclave of the same release",
        )
    if kind not in _KINDS or zero != 0:
        raise ProtocolError(f"the enclave says that it is of the unknown kind {kind}")
    names = Hardening.__struct_fields__
    hardening = Hardening(**{name: bool(flags >> bit & 1) for bit, name in enumerate(names)})
    board_name = board.rstrip(b"\0").decode("ascii", "replace")
    return EnclaveInfo(
        kind=_KINDS[kind],
        isolation=_isolation(_KINDS[kind], hardening, load_boards().get(board_name)),
        hardening=hardening,
        heap_bytes=heap_bytes,
        public_key=public_key,
        version=version.rstrip(b"\0").decode("utf-8", "replace"),
        board=board_name,
    )


def _isolation(kind: str, hardening: Hardening, board: Board | None) -> str:
    """What keeps the rest of the machine out, in words; a process has no say in it."""
    if kind == "local":
        return "process isolation, not hardware"
    words = "OP-TEE without secure RAM: the normal world can read it"
    if hardening.hardware_isolation:
        words = "isolation of an emulated machine" if board and board.emulated else "hardware isolation"
    return words + (", a demonstration" if hardening.demonstration else "")


def pack_load(bundle_id: bytes, manifest_sha256: bytes, enc: bytes, sealed_key: bytes, suite: int) -> bytes:
    """Parameter 0 of `load`.

    Args:
        bundle_id: 16 bytes.
        manifest_sha256: 32 bytes.
        enc: 32 bytes.
        sealed_key: 48 bytes.
        suite: the bundle's, by its number.
    """
    return _LOAD.pack(bundle_id, manifest_sha256, enc, sealed_key, suite, 0)


def pack_open(first: int, count: int) -> bytes:
    """Parameter 0 of `open`.

    Args:
        first: index of the first slice in parameter 1.
        count: number of slices there.
    """
    return _OPEN.pack(first, count, 0, 0)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What was loaded.

    Attributes:
        n_stages: stages of the inside program.
        n_slices: its slices.
        inside_bytes: inside memory that it takes.
        arena_bytes: how much of that is for activations and scratch.
    """

    n_stages: int
    n_slices: int
    inside_bytes: int
    arena_bytes: int


def unpack_loaded(block: bytes) -> Loaded:
    """Read the answer to `load`."""
    return Loaded(*_LOADED.unpack(block))


def pack_run(stage: int, n_images: int, window_first: int, window_count: int, *, resume: bool) -> bytes:
    """Parameter 0 of `run`.

    Args:
        stage: stage of the inside program.
        n_images: images in parameter 1.
        window_first: index of the first slice in parameter 3.
        window_count: number of slices there.
        resume: go on after the enclave needed a slice.
    """
    return _RUN.pack(stage, n_images, window_first, window_count, int(resume), 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class RunState:
    """How far a run came that is not done.

    Attributes:
        needed_slice: index of the slice that it waits for.
        images_done: images that are finished.
    """

    needed_slice: int
    images_done: int


def unpack_run(block: bytes | memoryview) -> RunState | None:
    """Read the answer in parameter 0 of `run`: how far it came, or None if it is done.

    Raises:
        ProtocolError: an unknown state.
    """
    *_, state, needed, images_done = _RUN.unpack(block)
    if state not in (_DONE, _NEEDS_SLICE):
        raise ProtocolError(f"expected the run to be done or to need a slice, but its state is {state}")
    return RunState(needed, images_done) if state == _NEEDS_SLICE else None


class EnclaveStats(msgspec.Struct, frozen=True):
    """What the enclave measured.

    Attributes:
        heap_peak_bytes: the most memory that it had allocated; a trusted application that serves several sessions
            counts all of them.
        heap_bytes: what it has allocated now.
        runs: finished runs.
        images: images in them.
        slices_opened: how often a slice was opened.
        slice_bytes_opened: their bytes.
        opening_ns: time spent opening.
        computing_ns: time spent computing.
    """

    heap_peak_bytes: int = 0
    heap_bytes: int = 0
    runs: int = 0
    images: int = 0
    slices_opened: int = 0
    slice_bytes_opened: int = 0
    opening_ns: int = 0
    computing_ns: int = 0


def unpack_stats(block: bytes) -> EnclaveStats:
    """Read the answer to `stats`."""
    return EnclaveStats(*_STATS.unpack(block))
