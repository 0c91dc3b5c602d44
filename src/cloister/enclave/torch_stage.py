"""Outside steps that run in torch: exported programs (`.pt2`). Only such a step needs torch.

Loading a `.pt2` can run code: torch falls back to pickle, resolves operators by attribute, and evaluates the text of
symbolic sizes. Nothing protects the outside parts of a bundle against their sender, so `_check_archive` lets pass
only what a stage of aten operators consists of.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.export.pt2_archive._package import PT2ArchiveReader

from cloister.errors import BundleError
from cloister.unpickling import tensors_only

__all__ = ["TorchStage"]

_TARGET = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge|and_)"
)
_EXPRESSION = re.compile(r"[\w'=(), -]*")
_EXPRESSION_WORDS = {"Symbol", "Integer", "Add", "Mul", "Pow", "Max", "Min", "FloorDiv", "Mod"} | {
    *("positive", "nonnegative", "nonzero", "integer", "True", "False")
}
_MEMBER = re.compile(
    r"models/model\.json|archive_format|archive_version|byteorder|\.data/\w+"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt"
)


class TorchStage:
    """An exported program as a stage.

    Args:
        data: a `.pt2` file's bytes.
        what: which part it is, for messages.

    Attributes:
        module: the program as a module: tensors (N, *shape) to a tensor or a tuple of them.

    Raises:
        BundleError: it is no exported program, or has something in it that could run code of its own.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._what = what
        try:
            _check_archive(data)
            with tensors_only():
                program = torch.export.load(io.BytesIO(data))
            self._batch = _fixed_batch(program)
            self.module = program.module()
        except BundleError as error:
            raise BundleError(f"{what}: {error}", error.hint) from error
        except Exception as error:  # torch raises nearly anything for a file that is not as it expects
            raise BundleError(f"{what} is no exported program that torch {torch.__version__} can load") from error

    def run(self, inputs: Sequence[npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Run a batch.

        Args:
            inputs: each (N, *shape) in PyTorch's layout, N at least 1.

        Returns:
            The outputs, each (N, *shape).

        Raises:
            BundleError: the program does not take such inputs.
        """
        n_images = len(inputs[0])
        size = self._batch or n_images
        pieces = [self._run_piece(inputs, start, size) for start in range(0, n_images, size)]
        return [np.concatenate(outputs)[:n_images] for outputs in zip(*pieces, strict=True)]

    def _run_piece(
        self, inputs: Sequence[npt.NDArray[np.generic]], start: int, size: int
    ) -> list[npt.NDArray[np.generic]]:
        # A fixed batch is filled by repeating the last image; the results for the copies are cut off.
        rows = np.minimum(np.arange(start, start + size), len(inputs[0]) - 1)
        tensors = [torch.from_numpy(np.ascontiguousarray(value[rows])) for value in inputs]
        try:
            with torch.inference_mode():
                outputs = self.module(*tensors)
        except Exception as error:  # whatever the program raises for its inputs
            raise BundleError(f"{self._what} does not run: {error}") from error
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return [output.detach().contiguous().numpy() for output in outputs]


def _fixed_batch(program: torch.export.ExportedProgram) -> int | None:
    """The batch that the program was exported for, or None if any will do."""
    user_inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in user_inputs:
            size = node.meta["val"].shape[0]
            return size if isinstance(size, int) else None
    raise BundleError("expected an exported program with inputs, but it has none")


def _check_archive(data: bytes) -> None:
    """Lets pass tensors, aten operators and plain sizes, and nothing that could run other code."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        prefixed = archive.namelist()
    reader = PT2ArchiveReader(io.BytesIO(data))
    # Two readers of one archive may disagree, and torch uses both.
    for name in {*(name.partition("/")[2] for name in prefixed), *reader.get_file_names()}:
        if not _MEMBER.fullmatch(name):
            raise BundleError(f"expected tensors and a graph, but the exported program contains `{name}`")
    _check_graph(json.loads(reader.read_bytes("models/model.json")))


def _check_graph(value: Any) -> None:
    """Every operator and size expression anywhere in the graph's JSON."""
    if isinstance(value, list):
        for item in value:
            _check_graph(item)
    elif isinstance(value, dict):
        if "inputs" in value and "target" in value and not _TARGET.fullmatch(str(value["target"])):
            raise BundleError(f"expected operators of aten, but the exported program calls `{value['target']}`")
        if "expr_str" in value and not _is_plain(str(value["expr_str"])):
            raise BundleError(f"expected a plain size, but the exported program has `{value['expr_str'][:80]}`")
        for item in value.values():
            _check_graph(item)


def _is_plain(expression: str) -> bool:
    """Whether a symbolic size consists of numbers, symbols and arithmetic only."""
    words = re.findall(r"[^\W\d]\w*", expression)
    known = all(word in _EXPRESSION_WORDS or re.fullmatch(r"[su]\d+", word) for word in words)
    return known and _EXPRESSION.fullmatch(expression) is not None
