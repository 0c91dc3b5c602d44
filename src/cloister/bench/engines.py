"""Engines that run a model, each in the way that its own documentation recommends, on one thread.

An engine is known by its name. Those of others are measured only where they can be imported; `why_missing` tells what
is not there. Ours are named by what they do: `cloister-outside`, `cloister-inside`, with `-fp32`, with the layers that
are inside (`cloister-inside[last:3]`; without: all), and with a budget (`cloister-inside@1MiB`; without: all slices
stay).
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import difflib
import importlib
import importlib.metadata
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import cloister
from cloister.bench import models
from cloister.enclave.instructions import allowed_sets, best_set
from cloister.enclave.session import Session
from cloister.errors import UserError
from cloister.protection import Lowered, lower_target, protect_lowered
from cloister.target import Target
from cloister.units import format_bytes, parse_bytes

__all__ = ["PEERS", "Case", "Engine", "Floats", "OwnEngine", "PeerEngine", "Prepared", "engine_named", "silent"]

#: Images, or logits.
Floats = npt.NDArray[np.float32]
Bits = Literal[8, 32]

_N_CALIBRATION = 64


class Prepared(NamedTuple):
    """A model in an engine.

    Attributes:
        take: images (batch, C, H, W) float32 in the form that the engine wants; not part of a run.
        run: what `take` gave to logits (batch, K), as an array or a tensor.
        session: what runs it, if it is Cloister.
    """

    take: Callable[[Floats], Any]
    run: Callable[[Any], Any]
    session: Session | None = None


class Case:
    """A model to measure; what several engines start from is made once.

    Attributes:
        target: the model.
        calibration: (N, *input_shape) float32 images that all int8 engines take their scales from.
        folder: for bundles and files of engines.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.calibration = models.images(target.input_shape, _N_CALIBRATION, seed=2)
        self.folder = folder
        self._lowered: dict[Bits, Lowered] = {}
        self._onnx: dict[int, Path] = {}

    @property
    def module(self) -> nn.Module:
        """The model in torch, in evaluation mode."""
        assert isinstance(self.target.model, nn.Module)
        return self.target.model

    def lowered(self, bits: Bits) -> Lowered:
        """The model as Cloister's operations."""
        if bits not in self._lowered:
            self._lowered[bits] = lower_target(self.target, bits=bits, calibration=self.calibration)
        return self._lowered[bits]

    def example(self, batch: int) -> torch.Tensor:
        """Images to export with."""
        return torch.from_numpy(self.calibration[:batch].copy())

    def batches(self, batch: int) -> list[Floats]:
        """Whole batches of the calibration images."""
        return [self.calibration[at : at + batch] for at in range(0, len(self.calibration) - batch + 1, batch)]

    def onnx(self, batch: int) -> Path:
        """The model as an ONNX file with a fixed batch, which engines can optimise best."""
        if batch not in self._onnx:
            path = self.folder / f"{self.target.name}-{batch}.onnx"
            program = torch.onnx.export(self.module, (self.example(batch),), dynamo=True, verbose=False)
            assert program is not None  # it is None only without dynamo
            program.save(path)
            self._onnx[batch] = path
        return self._onnx[batch]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine(abc.ABC):
    """What runs a model.

    Attributes:
        name: of the engine with its precision and place.
        bits: 8: int8; 32: float32.
    """

    name: str
    bits: Bits

    @property
    def why_missing(self) -> str | None:
        """Why it cannot be measured here, or None."""
        return None

    @property
    @abc.abstractmethod
    def version(self) -> str:
        """What runs it, with its version."""

    @abc.abstractmethod
    def prepare(self, case: Case, batch: int, stack: contextlib.ExitStack) -> Prepared:
        """Make a model ready for batches of a size.

        Args:
            case: the model.
            batch: images in a run.
            stack: ends what was started.
        """


# --- Others' engines -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerEngine(Engine):
    """An engine to compare with.

    Attributes:
        modules: what it needs, by import name; the first is the engine itself.
        maker: prepares it.
    """

    modules: tuple[str, ...]
    maker: Callable[[Case, int], Prepared]

    @property
    def why_missing(self) -> str | None:
        """See `Engine.why_missing`."""
        for module in self.modules:
            try:
                with silent():
                    importlib.import_module(module)
            except Exception as error:  # a package that is broken raises whatever it likes
                return f"`{module}` cannot be imported: {_first_line(error)}"
        return None

    @property
    def version(self) -> str:
        """See `Engine.version`."""
        package = self.modules[0].partition(".")[0]
        return f"{package} {importlib.metadata.version(package)}"

    def prepare(self, case: Case, batch: int, stack: contextlib.ExitStack) -> Prepared:
        """See `Engine.prepare`."""
        with silent(), torch.no_grad():
            return self.maker(case, batch)


def _torch_eager(case: Case, batch: int) -> Prepared:
    return Prepared(torch.from_numpy, _without_gradients(case.module))


def _torch_compile(case: Case, batch: int) -> Prepared:
    # Weights become constants: what one does to a model that is only run. As an option it also holds when the model is
    # compiled again, as other engines' `torch.export` may lead to.
    torch._dynamo.reset()
    run = _without_gradients(torch.compile(case.module, options={"freezing": True}))
    run(case.example(batch))  # compiles
    return Prepared(torch.from_numpy, run)


def _without_gradients(module: Callable[..., Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    @torch.inference_mode()
    def run(x: torch.Tensor) -> torch.Tensor:
        return module(x)  # type: ignore[no-any-return]

    return run


def _onnxruntime(path: Path) -> Prepared:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return Prepared(lambda x: {name: x}, lambda feed: session.run(None, feed)[0])


def _onnxruntime_fp32(case: Case, batch: int) -> Prepared:
    return _onnxruntime(case.onnx(batch))


def _onnxruntime_int8(case: Case, batch: int) -> Prepared:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source = case.onnx(batch)
    folded, path = source.with_suffix(".folded.onnx"), source.with_suffix(".int8.onnx")
    quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(case.batches(batch))

        def get_next(self) -> dict[str, Floats] | None:
            x = next(self._batches, None)
            return None if x is None else {name: x}

    name = _onnx_input(source)
    quantization.quantize_static(
        str(folded),
        str(path),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    return _onnxruntime(path)


def _onnx_input(path: Path) -> str:
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


def _executorch_int8(case: Case, batch: int) -> Prepared:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    portable_lib._unsafe_reset_threadpool(1)
    example = (case.example(batch),)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(case.module, example).module(), quantizer)
    for x in case.batches(batch):
        prepared(torch.from_numpy(x))
    exported = torch.export.export(convert_pt2e(prepared), example)
    data = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    program = portable_lib._load_for_executorch_from_buffer(data)

    def run(x: tuple[torch.Tensor]) -> torch.Tensor:
        return program.run_method("forward", x)[0]  # type: ignore[no-any-return]

    run.data = data  # type: ignore[attr-defined]  # the program reads it where it lies
    return Prepared(lambda x: (torch.from_numpy(x),), run)


def _openvino_int8(case: Case, batch: int) -> Prepared:
    import nncf
    import openvino

    core = openvino.Core()
    quantized = nncf.quantize(core.read_model(case.onnx(batch)), nncf.Dataset(case.batches(batch)))
    config = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(quantized, "CPU", config).create_infer_request()

    def run(x: Any) -> Any:
        # Handing the array to `infer` costs more in Python than a small model takes.
        request.set_input_tensor(x)
        request.infer()
        return request.get_output_tensor().data

    return Prepared(lambda x: openvino.Tensor(x, shared_memory=True), run)


_ONNX = ("onnx", "onnxscript")
_ET = tuple(f"executorch.{part}" for part in ("extension.pybindings.portable_lib", "exir", "backends.xnnpack"))

#: The engines of others.
PEERS: tuple[PeerEngine, ...] = (
    PeerEngine(name="torch-eager-fp32", bits=32, modules=("torch",), maker=_torch_eager),
    PeerEngine(name="torch-compile-fp32", bits=32, modules=("torch",), maker=_torch_compile),
    PeerEngine(name="onnxruntime-fp32", bits=32, modules=("onnxruntime", *_ONNX), maker=_onnxruntime_fp32),
    PeerEngine(name="onnxruntime-int8", bits=8, modules=("onnxruntime", *_ONNX), maker=_onnxruntime_int8),
    PeerEngine(name="executorch-xnnpack-int8", bits=8, modules=_ET, maker=_executorch_int8),
    PeerEngine(name="openvino-int8", bits=8, modules=("openvino", "nncf", *_ONNX), maker=_openvino_int8),
)


# --- Ours ----------------------------------------------------------------------------------------------------------

_OWN = re.compile(r"cloister-(?P<world>outside|inside)(?P<fp32>-fp32)?(\[(?P<layers>[^\]]+)\])?(@(?P<budget>.+))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnEngine(Engine):
    """Cloister with a plan.

    Attributes:
        inside: which layers are inside: `none`, `all`, `last:K`, or names.
        budget_bytes: inside memory that is allowed; None for no limit.
    """

    inside: str
    budget_bytes: int | None = None

    @classmethod
    def make(cls, inside: str, bits: Bits = 8, budget_bytes: int | None = None) -> OwnEngine:
        """The engine with its name."""
        name = "cloister-outside" if inside == "none" else "cloister-inside"
        name += "-fp32" if bits == 32 else ""
        name += f"[{inside}]" if inside not in ("none", "all") else ""
        name += f"@{format_bytes(budget_bytes).replace(' ', '')}" if budget_bytes is not None else ""
        return cls(name=name, bits=bits, inside=inside, budget_bytes=budget_bytes)

    @property
    def version(self) -> str:
        """See `Engine.version`."""
        return f"cloister {cloister.__version__}, {best_set(allowed_sets(), bits=self.bits)}"

    def prepare(self, case: Case, batch: int, stack: contextlib.ExitStack) -> Prepared:
        """See `Engine.prepare`.

        Raises:
            PlanError: it does not fit the budget, or the model has no such layers.
        """
        path = case.folder / f"{case.target.name}-{self.name.replace('/', '-')}.cloister"
        lowered = case.lowered(self.bits)
        protect_lowered(lowered, path, inside=self.inside, budget_bytes=self.budget_bytes, force=True)
        session = stack.enter_context(cloister.load(path))
        return Prepared(np.ascontiguousarray, session.run, session)


def engine_named(name: str) -> Engine:
    """The engine of a name.

    Raises:
        UserError: there is none.
    """
    for peer in PEERS:
        if peer.name == name:
            return peer
    match = _OWN.fullmatch(name)
    if match is None or (match["world"] == "outside" and (match["layers"] or match["budget"])):
        raise _unknown(name)
    budget_bytes = parse_bytes(match["budget"]) if match["budget"] else None
    inside = "none" if match["world"] == "outside" else match["layers"] or "all"
    return OwnEngine.make(inside, 32 if match["fp32"] else 8, budget_bytes)


def _unknown(name: str) -> UserError:
    known = [peer.name for peer in PEERS] + [f"cloister-{place}{bits}" for place in _PLACES for bits in ("", "-fp32")]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return UserError(
        f"expected an engine out of {', '.join(known)}, ours also with a budget (`cloister-inside@1MiB`) or layers "
        f"(`cloister-inside[last:3]`), but got `{name}`",
        f"did you mean `{near[0]}`?" if near else None,
    )


_PLACES = ("outside", "inside")


# --- Quiet ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing reaches standard output and error, not even from libraries that write past Python."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        # Python's own streams need not be these descriptors.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
