"""A model cut before one of its layers: what does not depend on it runs once, the rest in training.

Whatever depends on no parameter of the layer is the prefix; its values that the rest reads cross the cut. There may be
several (residual connections), and what cannot be kept image by image, such as a value whose outermost axis in memory
is not the batch, is computed again from what can. Two probing runs with two and three images tell which those are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from cloister.exposure.network import Group, Network, is_norm_of

__all__ = ["Crossing", "Cut", "cut_before"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crossing:
    """How a value that crosses lies in memory: image after image, each in the same order.

    Attributes:
        axis: the batch axis.
        shape: sizes of all axes; that of the batch means nothing.
        strides: in elements.
        dtype: of the value.
    """

    axis: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row(self) -> int:
        """Elements of one image."""
        return self.strides[self.axis]

    def rows_of(self, value: Tensor) -> Tensor:
        """The value (…, N, …) as (N, row), the same memory."""
        return value.as_strided((value.shape[self.axis], self.row), (self.row, 1))

    def value_of(self, rows: Tensor) -> Tensor:
        """Rows (N, row) as the value, the same memory."""
        shape = [len(rows) if axis == self.axis else size for axis, size in enumerate(self.shape)]
        return rows.as_strided(shape, self.strides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """A model in two parts.

    Attributes:
        group: the layer that is fine-tuned.
        prefix: images to the values that cross; None if the images themselves are all that crosses.
        crossings: of these values.
        training: (number of images, values, parameters and buffers of the group) to logits, with batch norms of the
            group in training mode.
        evaluation: likewise, with all in evaluation mode.
    """

    group: Group
    prefix: fx.GraphModule | None
    crossings: tuple[Crossing, ...]
    training: fx.GraphModule
    evaluation: fx.GraphModule


def cut_before(network: Network, group: Group, probe: Tensor) -> Cut:
    """Cut a model before a layer.

    Args:
        network: the model.
        group: the layer.
        probe: at least three images (N, …), under the autocast that will be used.
    """
    crossing = _Crossing(network, group, _probe(network, probe))
    values = tuple(crossing.found)
    return Cut(
        group=group,
        prefix=None if values == (network.input,) else network.part(values),
        crossings=tuple(crossing.found.values()),
        training=_suffix(network, crossing, training=True),
        evaluation=_suffix(network, crossing, training=False),
    )


def _suffix(network: Network, crossing: _Crossing, *, training: bool) -> fx.GraphModule:
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    n_images = graph.placeholder("n_images")
    for index, node in enumerate(crossing.found):
        made[node] = graph.placeholder(f"value{index}")
    group = crossing.group
    own = {name: graph.placeholder(f"own{index}") for index, name in enumerate((*group.parameters, *group.buffers))}
    for node in crossing.body:
        if node.op == "get_attr" and str(node.target) in own:
            made[node] = own[str(node.target)]
        elif crossing.is_batch_size(node):
            made[node] = n_images
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
            if training and is_norm_of(node, group.parameters):
                made[node].target = _batch_norm_in_training
    graph.output(made[network.output])
    return fx.GraphModule(network.tensors, graph)


def _batch_norm_in_training(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, momentum: float, eps: float
) -> tuple[Tensor]:
    """A batch norm with the batch's statistics, which moves the running ones; a tuple as the operator's is."""
    return (functional.batch_norm(x, mean, variance, scale, shift, True, momentum, eps),)


# --- what crosses ---


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every result."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)

    def results(self, *args: Any) -> dict[str, Any]:
        self.run(*args)
        return {node.name: value for node, value in self.env.items()}


def _probe(network: Network, images: Tensor) -> dict[str, tuple[Any, Any]]:
    """The results of all nodes by name, of two images and of three."""
    recorder = _Recorder(fx.GraphModule(network.tensors, network.graph))
    with torch.no_grad():
        two, three = (recorder.results(network.images(images[:n])) for n in (2, 3))
    return {name: (two[name], three[name]) for name in two}


class _Crossing:
    """Which values cross a cut, and which nodes come after it."""

    def __init__(self, network: Network, group: Group, results: dict[str, tuple[Any, Any]]) -> None:
        self.group = group
        self._results = results
        after = set(_dependents(network.graph, lambda node: node.op == "get_attr" and node.target in group.parameters))
        of_images = set(_dependents(network.graph, lambda node: node is network.input, stop=self._is_number))
        needed, stack = set(), [network.output]
        crossing: dict[fx.Node, Crossing] = {}
        while stack:
            node = stack.pop()
            if node in needed or node in crossing:
                continue
            layout = self._layout(node) if node in of_images and node not in after else None
            if layout is not None:
                crossing[node] = layout
            else:
                needed.add(node)
                stack += [] if self.is_batch_size(node) else node.all_input_nodes
        order = [node for node in network.graph.nodes if node in needed or node in crossing]
        self.found = {node: crossing[node] for node in order if node in crossing}
        self.body = [node for node in order if node in needed]

    def _is_number(self, node: fx.Node) -> bool:
        return isinstance(self._results[node.name][0], int | float | bool)

    def is_batch_size(self, node: fx.Node) -> bool:
        """Whether it is the number of images."""
        two, three = self._results[node.name]
        return type(two) is int and (two, three) == (2, 3)

    def _layout(self, node: fx.Node) -> Crossing | None:
        """How it is kept, or None if its images do not lie one after the other."""
        two, three = self._results[node.name]
        if not isinstance(two, Tensor) or two.dim() != three.dim():
            return None
        varying = [axis for axis in range(two.dim()) if two.shape[axis] != three.shape[axis]]
        if len(varying) != 1 or (two.shape[varying[0]], three.shape[varying[0]]) != (2, 3):
            return None
        axis = varying[0]
        by_stride = sorted(range(three.dim()), key=lambda i: (-three.stride(i), three.shape[i]))
        is_dense = three.permute(by_stride).is_contiguous() and three.stride(axis) * 3 == three.numel()
        alike = all(two.stride(i) == three.stride(i) for i in range(two.dim()))
        if not (is_dense and alike):
            return None
        return Crossing(axis=axis, shape=tuple(three.shape), strides=tuple(three.stride()), dtype=three.dtype)


def _dependents(graph: fx.Graph, begins: Any, stop: Any = lambda _: False) -> Iterator[fx.Node]:
    """Nodes that a condition holds for, and all that depend on them, but not through nodes to stop at."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_one = begins(node) or any(arg in found for arg in node.all_input_nodes)
        if is_one and (node.op == "output" or not stop(node)):
            found.add(node)
            yield node
