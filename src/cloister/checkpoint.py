"""Weights on disk: safetensors, with one JSON document (`Checkpoint`) in the metadata of those Cloister trained.

PyTorch files are read as tensors only; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cloister.errors import TargetError
from cloister.outputs import refuse_existing

__all__ = [
    "Checkpoint",
    "load_checkpoint",
    "load_weights",
    "read_tensors",
    "save_checkpoint",
    "write_tensors",
]

_METADATA_KEY = "cloister"
_CHECKPOINT_VERSION = 1
_TORCH_SUFFIXES = (".pt", ".pth", ".bin")


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """How weights were trained: enough to build the model and to redo the cut into members and non-members.

    Attributes:
        model: name of the target, for example `vgg7`.
        input_shape: of one input, without the batch axis.
        n_classes: number of classes K.
        seed: of the cut and of training.
        n_members: size of the part of the training set that was trained on.
        data: name of the data set.
        data_sha256: `Dataset.sha256` of its training part.
        n_epochs: epochs trained.
        learning_rate: its peak.
        batch_size: largest number of images in one step.
        precision: `float32` or `bfloat16` arithmetic.
        train_accuracy: on the members, in [0, 1].
        test_accuracy: on the test part, in [0, 1].
        version: of this document.
    """

    model: str
    input_shape: tuple[int, ...]
    n_classes: int
    seed: int
    n_members: int
    data: str
    data_sha256: str
    n_epochs: int
    learning_rate: float
    batch_size: int
    precision: str
    train_accuracy: float
    test_accuracy: float
    version: int = _CHECKPOINT_VERSION


def save_checkpoint(path: Path, state: Mapping[str, Tensor], checkpoint: Checkpoint, *, force: bool = False) -> None:
    """Write weights with their `Checkpoint`; the file appears whole or not at all.

    Raises:
        OutputExists: the file is there and `force` is not set.
        TargetError: the file cannot be written.
    """
    refuse_existing(path, force=force)
    write_tensors(path, state, msgspec.json.encode(checkpoint).decode())


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Checkpoint | None]:
    """Read weights.

    Args:
        path: safetensors, or a PyTorch file of tensors (.pt, .pth, .bin).

    Returns:
        Tensors by name, and how they were trained if the file tells.

    Raises:
        TargetError: a file that cannot be read, is of another kind or of another version.
    """
    if path.suffix in _TORCH_SUFFIXES:
        return _read_torch(path), None
    if path.suffix != ".safetensors":
        wanted = ", ".join((".safetensors", *_TORCH_SUFFIXES))
        raise TargetError(f"expected weights as {wanted}, but got `{path}`")
    tensors, document = read_tensors(path)
    return tensors, _decode_checkpoint(document, path) if document is not None else None


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a model; names and shapes must be exactly the model's.

    Args:
        model: changed in place.
        state: tensors by name.
        source: where they are from, for messages.

    Raises:
        TargetError: names that are missing or unexpected, shapes that differ, values that are not finite.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    problems = [
        f"`{name}`: expected {tuple(own[name].shape)}, but got {tuple(tensor.shape)}"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    ]
    problems += [f"`{name}`: not finite" for name, tensor in state.items() if not tensor.isfinite().all()]
    problems += [f"missing {_some(missing)}"] if missing else []
    problems += [f"unexpected {_some(unexpected)}"] if unexpected else []
    if problems:
        more = [f"{len(problems) - 8} more"] if len(problems) > 8 else []
        raise TargetError(f"{source}: " + "; ".join(problems[:8] + more), _weights_hint(own, state))
    model.load_state_dict(dict(state), strict=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], document: str) -> None:
    """Write safetensors with one JSON document in their metadata, whole or not at all.

    Raises:
        TargetError: the file cannot be written.
    """
    # Copies, because safetensors refuses tensors that share memory or are not contiguous.
    plain = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    data = safetensors.torch.save(plain, metadata={_METADATA_KEY: document})
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise TargetError(f"cannot write `{path}`: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read safetensors and the JSON document in their metadata, or None if it has none of ours.

    Raises:
        TargetError: the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            document = (file.metadata() or {}).get(_METADATA_KEY)
            return {name: file.get_tensor(name) for name in file.keys()}, document  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise TargetError(f"cannot read weights `{path}`: {error}") from error


def _decode_checkpoint(document: str, path: Path) -> Checkpoint:
    try:
        checkpoint = msgspec.json.decode(document, type=Checkpoint)
    except msgspec.DecodeError as error:
        raise TargetError(f"metadata of `{path}` cannot be read: {error}") from error
    if checkpoint.version != _CHECKPOINT_VERSION:
        raise TargetError(
            f"expected version {_CHECKPOINT_VERSION} of the checkpoint metadata in `{path}`, "
            f"but got {checkpoint.version}",
            "use the version of Cloister that wrote it",
        )
    return checkpoint


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes PyTorch raise
        reason = str(error).partition("\n")[0]
        raise TargetError(
            f"cannot read weights `{path}` as tensors only: {type(error).__name__}: {reason}",
            "save a state dictionary: torch.save(model.state_dict(), …), or safetensors",
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(_is_plain(k, v) for k, v in loaded.items()):
        raise TargetError(f"expected a dictionary of dense tensors by name in `{path}`")
    return loaded


def _is_plain(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and value.device.type == "cpu"
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _weights_hint(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    """Say what most often is wrong."""
    for prefix in ("module.", "model.", "_orig_mod."):
        if state and all(name.startswith(prefix) for name in state) and not any(n.startswith(prefix) for n in own):
            return f"every name begins with `{prefix}`: save the state of the module inside the wrapper"
    if set(own) == set(state):
        return "are they for another input shape or number of classes?"
    return "they are of another model" if not set(own) & set(state) else None
