"""The interpreter in this process: runs the outside program of a bundle.

It is the same C code that runs inside, built as the shared library `libcloister_core.so`, which also holds the client's
side of calls to the local enclave.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib.resources
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cloister.errors import BundleError, EnclaveUnavailable, InputError, ProtocolError

__all__ = ["OutsideProgram", "StageSizes", "allocate", "load_library", "pointer", "read_stages"]

_LIBRARY = "libcloister_core.so"
_ALIGNMENT = 64
_HEADER_WORDS = 16
_TENSOR_WORDS = 6
_SLICE_WORDS = 5
_ITEM_BYTES = np.array([0, 1, 4])  # by a tensor's dtype word

_Bytes = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSizes:
    """Payload of one stage for one image.

    Attributes:
        in_bytes: bytes of all its input tensors.
        out_bytes: bytes of all its output tensors.
    """

    in_bytes: int
    out_bytes: int


def read_stages(program: bytes) -> tuple[StageSizes, ...]:
    """The payload sizes of a program's stages.

    It checks no more than that its own reading stays inside `program`; whether the program is valid at all is the
    interpreter's judgement.

    Args:
        program: in the binary format of `docs/spec/program.md`.

    Raises:
        BundleError: if the tables do not fit into the program.
    """
    words = np.frombuffer(program[: len(program) // 4 * 4], dtype="<u4").astype(np.int64)
    if len(words) < _HEADER_WORDS:
        raise BundleError(f"expected a program of at least {4 * _HEADER_WORDS} bytes, but got {len(program)}")
    n_tensors, n_slices, n_op_words, n_stages, n_stage_words = (int(word) for word in words[4:9])
    end_of_tensors = _HEADER_WORDS + _TENSOR_WORDS * n_tensors
    first = end_of_tensors + _SLICE_WORDS * n_slices + n_op_words
    if first + n_stage_words != len(words):
        raise BundleError("the program's tables do not add up to its length")
    tensors = words[_HEADER_WORDS:end_of_tensors].reshape(-1, _TENSOR_WORDS)
    try:
        return _read_stage_words(words[first:], _tensor_bytes(tensors), n_stages)
    except IndexError:
        raise BundleError("the program's stages refer to something that is not in it") from None


def _tensor_bytes(tensors: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Bytes of each tensor, (n_tensors,), from its record's words."""
    n_bytes: npt.NDArray[np.int64] = tensors[:, 2:5].prod(axis=1) * _ITEM_BYTES[tensors[:, 1]]
    return n_bytes


def _read_stage_words(
    words: npt.NDArray[np.int64], tensor_bytes: npt.NDArray[np.int64], n_stages: int
) -> tuple[StageSizes, ...]:
    stages = []
    at = 0
    for _ in range(n_stages):
        n_inputs, n_outputs = int(words[at + 2]), int(words[at + 3])
        split, end = at + 4 + n_inputs, at + 4 + n_inputs + n_outputs
        if end > len(words):
            raise IndexError(end)
        in_bytes, out_bytes = tensor_bytes[words[at + 4 : split]].sum(), tensor_bytes[words[split:end]].sum()
        stages.append(StageSizes(in_bytes=int(in_bytes), out_bytes=int(out_bytes)))
        at = end
    return tuple(stages)


class OutsideProgram:
    """An opened outside program. One thread at a time may run it.

    Args:
        program: in the binary format of `docs/spec/program.md`.
        constants: its clear slices, each at its store offset; a memoryview of bytes saves a copy.
        sets: instruction sets that it may use, see `instructions.allowed_sets`.

    Attributes:
        stages: payload sizes of its stages.

    Raises:
        BundleError: if the interpreter refuses the program or its constants.
        EnclaveUnavailable: if the interpreter's library is missing or does not load.
    """

    def __init__(self, program: bytes, constants: bytes | memoryview, sets: int = 0xFFFFFFFF) -> None:
        self._library = load_library()
        self._program = _aligned(program)
        self._constants = _aligned(constants)
        need = ctypes.c_uint64()
        status = self._library.cl_core_need(pointer(self._program), len(program), ctypes.byref(need))
        self._check(status, BundleError, "the outside program was refused")
        self._memory = allocate(need.value)
        status = self._library.cl_core_open(
            *(pointer(self._memory), need.value),
            *(pointer(self._program), len(program)),
            *(pointer(self._constants), len(constants)),
            sets,
        )
        self._check(status, BundleError, "the outside program was refused")
        self._base = pointer(self._memory)
        self.stages = read_stages(program)

    def run(self, stage: int, payload: _Bytes) -> _Bytes:
        """Runs one stage on a batch.

        Args:
            stage: index of the stage in the program.
            payload: (N, in_bytes) uint8, the input tensors of each image one behind the other.

        Returns:
            (N, out_bytes) uint8, the output tensors of each image one behind the other.

        Raises:
            InputError: if there is no such stage, or the payload has another dtype or shape.
            ProtocolError: if the interpreter reports an error.
        """
        result = np.empty((len(payload), self._sizes(stage).out_bytes), dtype=np.uint8)
        self.prepare(stage, np.ascontiguousarray(payload), result)()
        return result

    def prepare(self, stage: int, payload: _Bytes, result: _Bytes) -> Callable[[], None]:
        """Makes `run` for memory that stays where it is.

        Args:
            stage: index of the stage in the program.
            payload: (N, in_bytes) uint8 as for `run`, contiguous; read in each call.
            result: (N, out_bytes) uint8, contiguous; written in each call.

        Raises:
            InputError: if there is no such stage, or an array has another dtype or shape.
        """
        sizes = self._sizes(stage)
        _check_rows(f"stage {stage}: expected a payload", payload, sizes.in_bytes)
        _check_rows(f"stage {stage}: expected room for results", result, sizes.out_bytes)
        if not len(payload):
            return lambda: None
        ends = (pointer(payload), payload.nbytes, pointer(result), result.nbytes)
        return functools.partial(self._call, (self._base, stage, len(payload), *ends), (payload, result))

    def _call(self, arguments: tuple[int, ...], _alive: tuple[_Bytes, _Bytes]) -> None:
        if status := self._library.cl_core_run(*arguments):
            self._check(status, ProtocolError, f"stage {arguments[1]} failed")

    def _sizes(self, stage: int) -> StageSizes:
        if not 0 <= stage < len(self.stages):
            raise InputError(f"expected a stage below {len(self.stages)}, but got {stage}")
        return self.stages[stage]

    def _check(self, status: int, error: type[BundleError] | type[ProtocolError], subject: str) -> None:
        if status:
            text = self._library.cl_core_status_text(status)
            raise error(f"{subject}: {text.decode() if text else f'status {status}'}")


def _check_rows(subject: str, rows: _Bytes, n_bytes: int) -> None:
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != n_bytes or not rows.flags.c_contiguous:
        raise InputError(f"{subject} of (N, {n_bytes}) uint8, but got {rows.shape} {rows.dtype}")


@functools.cache
def load_library() -> ctypes.CDLL:
    """The shared library, once in each process.

    Raises:
        EnclaveUnavailable: if it is missing or does not load.
    """
    # The file must outlive this call, so the context stays open until the interpreter ends.
    stack = contextlib.ExitStack()
    source = importlib.resources.files("cloister") / "_bin" / _LIBRARY
    try:
        library = ctypes.CDLL(str(stack.enter_context(importlib.resources.as_file(source))))
    except OSError as error:
        raise EnclaveUnavailable(
            f"the interpreter's library {_LIBRARY} does not load: {error}",
            "reinstall the package: pip install --force-reinstall cloister",
        ) from error
    return _declare(library)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    data, size = ctypes.c_void_p, ctypes.c_uint64
    library.cl_core_need.argtypes = [data, size, ctypes.POINTER(size)]
    library.cl_core_open.argtypes = [data, size, data, size, data, size, ctypes.c_uint32]
    library.cl_core_kernel.argtypes = [ctypes.c_uint32, ctypes.c_uint32]
    library.cl_core_kernel.restype = ctypes.c_char_p
    library.cl_core_run.argtypes = [data, ctypes.c_uint32, ctypes.c_uint32, data, size, data, size]
    library.cl_core_status_text.argtypes = [ctypes.c_int32]
    library.cl_core_status_text.restype = ctypes.c_char_p
    return library


def _aligned(data: bytes | memoryview) -> _Bytes:
    """`data` at a multiple of 64; a copy only where it must be, since constants can be large."""
    array = np.frombuffer(data, dtype=np.uint8)
    if array.ctypes.data % _ALIGNMENT == 0:
        return array
    copy = allocate(len(data))
    copy[:] = array
    return copy


def allocate(n_bytes: int) -> _Bytes:
    """Zeros, (n_bytes,) uint8, at a multiple of 64."""
    block = np.zeros(n_bytes + _ALIGNMENT, dtype=np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    return block[start : start + n_bytes]


def pointer(array: npt.NDArray[np.generic]) -> int:
    """Where an array's first element lies."""
    return int(array.__array_interface__["data"][0])  # a third of the time of array.ctypes.data
