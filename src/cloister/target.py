"""Targets: a model with its input shape and, where known, what it was trained on.

A `package.module:function` is code, and runs as such. A `.pt2` file is PyTorch's own format: what of it would
be unpickled or run natively is refused, but PyTorch advises to load only files that one trusts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.export import ExportedProgram

from cloister import zoo
from cloister.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from cloister.data import Dataset, split
from cloister.errors import DataError, TargetError
from cloister.unpickling import tensors_only

__all__ = [
    "Checkpoint",
    "Pair",
    "Target",
    "load_checkpoint",
    "load_target",
    "save_checkpoint",
    "with_members",
]

#: Images (N, C, H, W) float32 and labels (N,) int64.
Pair = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
Shape = tuple[int, ...]
_T = TypeVar("_T")

#: Records of a .pt2 archive that would be unpickled, or run as native code.
_UNSAFE_RECORDS = ("custom_obj", "opaque_obj", "aotinductor")
_SHAPE_HINT = "give `--data`, or `--input-shape` and `--classes`"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A model to protect or to attack.

    Attributes:
        model: maps images (N, *input_shape) float32 to logits (N, K).
        name: for messages, reports and checkpoints.
        input_shape: of one input, without the batch axis.
        members: (x, y) that the model was trained on: x (N, *input_shape) float32, y (N,) int64.
        nonmembers: (x, y) from the same distribution that the model has not seen.
        n_classes: number of classes K, or None if unknown.
        checkpoint: how the weights were trained, if Cloister trained them.

    Raises:
        TargetError: fields that contradict this; every contradiction is listed.
    """

    model: nn.Module | ExportedProgram
    name: str
    input_shape: Shape
    members: Pair | None = None
    nonmembers: Pair | None = None
    n_classes: int | None = None
    checkpoint: Checkpoint | None = None

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(self.model, nn.Module | ExportedProgram):
            problems.append(
                f"expected `model` to be an nn.Module or ExportedProgram, but got {type(self.model).__name__}"
            )
        shape = self.input_shape
        if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
            problems.append(f"expected `input_shape` of positive sizes, but got {shape}")
        if self.n_classes is not None and self.n_classes < 1:
            problems.append(f"expected `n_classes` of at least 1, but got {self.n_classes}")
        for field in ("members", "nonmembers"):
            problems += _pair_problems(field, getattr(self, field), tuple(shape))
        if problems:
            raise TargetError(f"target `{self.name}`: " + "; ".join(problems))


def load_target(
    spec: str,
    *,
    weights: Path | str | None = None,
    input_shape: Shape | None = None,
    n_classes: int | None = None,
    seed: int = 0,
) -> Target:
    """Make a target from what is written on the command line.

    Args:
        spec: `zoo:NAME`; `package.module:function`, called without arguments, which returns an nn.Module or a
            Target; or a `.pt2` file of `torch.export.save`.
        weights: safetensors, or a PyTorch file of tensors (.pt, .pth, .bin); all names and shapes must agree.
        input_shape: of one input, without the batch axis; not needed where checkpoint, Target or file tell.
        n_classes: number of classes K; likewise.
        seed: of initial weights, in [0, 2**63): the global generator is seeded with it while a function runs.

    Returns:
        The target, in evaluation mode.

    Raises:
        TargetError: a target or weights that cannot be loaded, or contradict the arguments.

    Example:
        >>> load_target("zoo:vgg7", input_shape=(1, 8, 8), n_classes=10).name
        'vgg7'
    """
    state, checkpoint = load_checkpoint(Path(weights)) if weights is not None else (None, None)
    if checkpoint is not None:
        source = f"weights `{weights}`"
        input_shape = _agree("input shape", source, checkpoint.input_shape, input_shape)
        n_classes = _agree("number of classes", source, checkpoint.n_classes, n_classes)
    if spec.startswith("zoo:"):
        target = _load_zoo(spec.removeprefix("zoo:"), checkpoint, input_shape, n_classes, seed)
    elif spec.endswith(".pt2"):
        target = _load_pt2(Path(spec), input_shape, n_classes)
    elif ":" in spec:
        target = _load_function(spec, input_shape, n_classes, seed)
    else:
        raise TargetError(
            f"expected `zoo:NAME`, `package.module:function` or a .pt2 file as target, but got `{spec}`",
            "zoo models: " + ", ".join(zoo.NAMES),
        )
    if isinstance(target.model, nn.Module):
        if state is not None:
            load_weights(target.model, state, f"weights `{weights}`")
        target.model.eval()
    elif state is not None:
        raise TargetError(f"`{spec}` has its own weights, but got `{weights}` too", "leave out the weights")
    return dataclasses.replace(target, checkpoint=checkpoint or target.checkpoint)


def with_members(target: Target, dataset: Dataset) -> Target:
    """Redo the cut into members and non-members that a target was trained with.

    Args:
        target: with a checkpoint.
        dataset: the one it was trained on.

    Returns:
        The target with `members` and `nonmembers`.

    Raises:
        TargetError: no checkpoint.
        DataError: another data set than the one it was trained on.
    """
    known = target.checkpoint
    if known is None:
        raise TargetError(
            f"target `{target.name}`: expected a checkpoint that tells members, but there is none",
            "train it with `cloister train`, or return a Target with `members` and `nonmembers`",
        )
    if dataset.sha256 != known.data_sha256:
        raise DataError(
            f"target `{target.name}` was trained on `{known.data}` ({known.data_sha256[:12]}), "
            f"but got data set `{dataset.name}` ({dataset.sha256[:12]})",
            "only the very same training images tell members from non-members",
        )
    inside, outside = split(dataset.n_train, n_members=known.n_members, seed=known.seed)
    return dataclasses.replace(
        target,
        members=(dataset.images(inside), dataset.labels(inside)),
        nonmembers=(dataset.images(outside), dataset.labels(outside)),
    )


# --- kinds of targets ---


def _load_zoo(
    name: str, checkpoint: Checkpoint | None, shape: Shape | None, n_classes: int | None, seed: int
) -> Target:
    zoo.check_name(name)
    if checkpoint is not None and checkpoint.model != name:
        raise TargetError(
            f"expected weights of `zoo:{name}`, but they are of `{checkpoint.model}`",
            f"use the target `zoo:{checkpoint.model}`" if checkpoint.model in zoo.NAMES else None,
        )
    if shape is None or n_classes is None:
        raise TargetError(f"`zoo:{name}` needs an input shape and a number of classes", _SHAPE_HINT)
    model = zoo.build(name, input_shape=shape, n_classes=n_classes, seed=seed)
    return Target(model=model, name=name, input_shape=tuple(shape), n_classes=n_classes)


def _load_function(spec: str, shape: Shape | None, n_classes: int | None, seed: int) -> Target:
    # The same call gives the same initial weights, or no interrupted training could go on.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = _call_function(spec)
    if isinstance(made, Target):
        shape = _agree("input shape", f"target `{spec}`", made.input_shape, shape)
        n_classes = _agree("number of classes", f"target `{spec}`", made.n_classes, n_classes)
        return dataclasses.replace(made, n_classes=n_classes)
    if isinstance(made, ExportedProgram):
        return _exported_target(made, spec, shape, n_classes)
    if not isinstance(made, nn.Module):
        raise TargetError(
            f"expected `{spec}` to return an nn.Module or a cloister.Target, but got {type(made).__name__}"
        )
    if shape is None:
        raise TargetError(
            f"`{spec}` returned an nn.Module, whose input shape is not known",
            "give `--data` or `--input-shape`, or return a cloister.Target",
        )
    return Target(model=made, name=spec, input_shape=tuple(shape), n_classes=n_classes)


def _call_function(spec: str) -> object:
    module_name, _, function_name = spec.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        raise TargetError(f"expected `package.module:function`, but got `{spec}`")
    with _working_directory_importable():
        module = _import_module(module_name, spec)
        function = _find_function(module, function_name, spec)
        try:
            return function()
        except TargetError:
            raise
        except Exception as error:
            _raise_theirs(error, spec, getattr(module, "__file__", None))


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Look for modules in the working directory first, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have changed the path
            sys.path.remove(here)


def _import_module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(
                f"expected a module `{name}`, but there is no `{error.name}`",
                "run from the folder that holds it, or install it",
            ) from error
        _raise_theirs(error, spec, None)
    except Exception as error:
        _raise_theirs(error, spec, None)


def _find_function(module: ModuleType, name: str, spec: str) -> Callable[[], object]:
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, known)
        raise TargetError(
            f"expected a function `{name}` in module `{module.__name__}`, "
            + ("but there is none" if function is None else f"but it is a {type(function).__name__}"),
            f"did you mean `{module.__name__}:{near[0]}`" if near else None,
        )
    with contextlib.suppress(ValueError):  # some built-in functions have no signature
        try:
            inspect.signature(function).bind()
        except TypeError as error:
            raise TargetError(f"expected `{spec}` to need no arguments: {error}") from error
    return function  # type: ignore[no-any-return]


def _raise_theirs(error: Exception, spec: str, file: str | None) -> NoReturn:
    """Report an error in the user's code with its type and the line: their own line where it is known."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__
        and not frame.filename.startswith("<frozen")
        and Path(frame.filename).parts[-2:-1] != ("importlib",)
    ]
    own = [frame for frame in frames if frame.filename == file] or frames
    where = f", at {own[-1].filename}:{own[-1].lineno}" if own else ""
    raise TargetError(f"`{spec}` raised {type(error).__name__}: {error}{where}") from error


def _load_pt2(path: Path, shape: Shape | None, n_classes: int | None) -> Target:
    _check_pt2(path)
    try:
        with tensors_only():
            program = torch.export.load(path)
    except Exception as error:  # whatever a damaged file makes PyTorch raise
        raise TargetError(f"cannot load `{path}`: {type(error).__name__}: {error}") from error
    return _exported_target(program, path.stem, shape, n_classes)


def _check_pt2(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        came = "something else" if path.exists() else "nothing"
        raise TargetError(f"expected a file of torch.export.save at `{path}`, but found {came}")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    unsafe = [name for name in names if any(part in name for part in _UNSAFE_RECORDS)]
    if unsafe:
        raise TargetError(
            f"`{path}` has `{unsafe[0]}`, which would run code when loaded",
            "export a model of plain tensors with torch.export",
        )
    if not any(name.endswith("models/model.json") for name in names):
        raise TargetError(f"expected one model in `{path}`, as torch.export.save of PyTorch 2.8 and later writes it")


def _exported_target(program: ExportedProgram, name: str, shape: Shape | None, n_classes: int | None) -> Target:
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1:
        raise TargetError(f"`{name}`: expected one input, the images, but it has {len(inputs)}: {inputs}")
    node = next(node for node in program.graph.nodes if node.name == inputs[0])
    own = tuple(node.meta["val"].shape[1:])
    if not all(isinstance(size, int) for size in own):
        raise TargetError(f"`{name}`: expected only the batch to vary, but its input is (N, {own})")
    shape = _agree("input shape", f"`{name}`", own, shape)
    return Target(model=program, name=name, input_shape=own, n_classes=n_classes)


# --- helpers ---


def _agree(what: str, source: str, known: _T | None, asked: _T | None) -> _T | None:
    if known is not None and asked is not None and known != asked:
        raise TargetError(f"{source}: expected {what} {known}, but got {asked}")
    return asked if known is None else known


def _pair_problems(field: str, pair: Pair | None, shape: Shape) -> list[str]:
    if pair is None:
        return []
    x, y = pair
    problems = []
    if x.dtype != np.float32 or x.shape[1:] != shape or not len(x):
        problems.append(
            f"expected images of `{field}` as float32 (N, {', '.join(map(str, shape))}), but got {x.dtype} {x.shape}"
        )
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        problems.append(f"expected {len(x)} labels of `{field}` as integers, but got {y.dtype} {y.shape}")
    return problems
