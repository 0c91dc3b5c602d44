"""A model as a graph, cut before one of its layers: what does not depend on it runs once, the rest in training.

Whatever depends on no parameter of the layer is the prefix; its values that the rest reads cross the cut. There may be
several (residual connections), and what cannot be kept image by image, such as a value whose outermost axis in memory
is not the batch, is computed again from what can. Two probing runs with two and three images tell which those are.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn import functional

from cloister.compile.capture import capture
from cloister.errors import TargetError, UnsupportedModel

__all__ = ["Crossing", "Cut", "Group", "Network"]

aten = torch.ops.aten
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The parameters that count as one layer.

    Attributes:
        name: of the layer.
        parameters: their names.
        buffers: names of the running statistics of its batch norms.
    """

    name: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]


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


class Network:
    """A classifier in evaluation mode as a functional graph with named parameters.

    Args:
        model: a module or an exported program; it is not changed.
        input_shape: of one image.
        channels_last: keep images and weights in that memory format.

    Raises:
        UnsupportedModel: it cannot be exported with any number of images.
        TargetError: it has no parameters, or the shape does not fit.
    """

    def __init__(
        self, model: nn.Module | ExportedProgram, input_shape: tuple[int, ...], *, channels_last: bool = False
    ) -> None:
        program = _export(model, input_shape) if isinstance(model, nn.Module) else model
        captured = capture(program, input_shape)
        if not captured.dynamic_batch:
            raise _one_at_a_time()
        self._layout = torch.channels_last if channels_last and len(input_shape) == 3 else torch.contiguous_format
        module = _functional(program)
        self.graph = module.graph
        self.tensors = {name: self._laid_out(tensor.detach().clone()) for name, tensor in _tensors(module).items()}
        self.parameters = _parameters(program, self.graph)
        if not self.parameters:
            raise TargetError("exposure: expected a model with parameters, but it has none")
        self._aliases = captured.aliases
        self.input = next(node for node in self.graph.nodes if node.op == "placeholder")

    def _laid_out(self, tensor: Tensor) -> Tensor:
        return self.images(tensor) if tensor.dim() == 4 else tensor.contiguous()

    def images(self, images: Tensor) -> Tensor:
        """Images in the network's memory format."""
        return images.contiguous(memory_format=self._layout)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of graph and tensors, in hexadecimal."""
        digest = hashlib.sha256(str(self.graph).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def groups(self, wanted: Mapping[str, Sequence[str]] | None = None) -> tuple[Group, ...]:
        """The layers, by first use.

        Args:
            wanted: names or globs of parameters for each layer; if omitted, each layer of `layers.layer_table`: a
                module with parameters, and the batch norm that can be folded into it.

        Raises:
            TargetError: no such parameter, one in two layers, or a layer without any.
        """
        members: dict[str, list[str]] = {}
        if wanted is None:
            for name in self.parameters:
                members.setdefault(self._layer_of(name), []).append(name)
        else:
            members = _matched(wanted, self.parameters)
        order = {name: place for place, name in enumerate(self.parameters)}
        named = sorted(members.items(), key=lambda one: min(order[name] for name in one[1]))
        return tuple(self._group(name, tuple(names)) for name, names in named)

    def _layer_of(self, parameter: str) -> str:
        """The module that has it; for one of the model itself, the first parameter that is read along with it."""
        module = parameter.rpartition(".")[0]
        if module:
            return self._aliases.get(module, module)
        readers = ([str(arg.target) for arg in node.all_input_nodes] for node in self.graph.nodes)
        together = next(names for names in readers if parameter in names)
        return next(name for name in together if name in self.parameters)

    def _group(self, name: str, parameters: tuple[str, ...]) -> Group:
        nodes = [node for node in self.graph.nodes if _is_norm_of(node, parameters)]
        buffers = dict.fromkeys(str(arg.target) for node in nodes for arg in node.args[3:5])
        return Group(name=name, parameters=parameters, buffers=tuple(buffers))

    def cut(self, group: Group, probe: Tensor) -> Cut:
        """Cut before a layer.

        Args:
            group: the layer.
            probe: at least three images (N, …), under the autocast that will be used.
        """
        crossing = _Crossing(self, group, _probe(self, probe))
        values = tuple(crossing.found)
        is_input = values == (self.input,)
        return Cut(
            group=group,
            prefix=None if is_input else self._prefix(values),
            crossings=tuple(crossing.found.values()),
            training=self._suffix(crossing, training=True),
            evaluation=self._suffix(crossing, training=False),
        )

    def whole(self) -> fx.GraphModule:
        """Images to logits, as it is."""
        return self._prefix((self._output,), single=True)

    @property
    def _output(self) -> fx.Node:
        end = next(node for node in self.graph.nodes if node.op == "output")
        found: fx.Node = end.all_input_nodes[0]
        return found

    def _prefix(self, values: Sequence[fx.Node], *, single: bool = False) -> fx.GraphModule:
        graph = fx.Graph()
        made: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if node.op != "output":
                made[node] = graph.node_copy(node, made.__getitem__)
        graph.output(made[values[0]] if single else tuple(made[value] for value in values))
        graph.eliminate_dead_code()
        return fx.GraphModule(self.tensors, graph)

    def _suffix(self, crossing: _Crossing, *, training: bool) -> fx.GraphModule:
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
                if training and _is_norm_of(node, group.parameters):
                    made[node].target = _batch_norm_in_training
        graph.output(made[self._output])
        return fx.GraphModule(self.tensors, graph)


# --- from a model to a functional graph ---


def _one_at_a_time() -> UnsupportedModel:
    return UnsupportedModel(
        "exposure: expected a model that takes any number of images, but it takes one at a time",
        [("(input)", "signature", "batch fixed to 1")],
        "see that `torch.export.export` with a dynamic batch axis works",
    )


def _export(model: nn.Module, input_shape: tuple[int, ...]) -> ExportedProgram:
    """Export in evaluation mode, with gradients on: without, attention takes a path that has no gradient."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            shapes = ({0: torch.export.Dim.DYNAMIC},)
            return torch.export.export(model, (torch.zeros(2, *input_shape),), dynamic_shapes=shapes)
    except Exception as error:  # whatever export dislikes
        capture(model, input_shape)  # says what is wrong, unless it is the batch axis
        raise _one_at_a_time() from error
    finally:
        for module, mode in was_training.items():
            module.training = mode


def _functional(program: ExportedProgram) -> fx.GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = program.run_decompositions({}).module()
    assert isinstance(module, fx.GraphModule)
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
        elif node.target is aten.view.default:
            # A view holds only for the strides at export; channels-last ones are others.
            node.target = aten.reshape.default
    module.graph.eliminate_dead_code()
    return module


def _tensors(module: fx.GraphModule) -> dict[str, Tensor]:
    """Parameters, buffers and constants that the graph reads."""
    names = dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "get_attr")
    return {name: operator.attrgetter(name)(module) for name in names}


def _parameters(program: ExportedProgram, graph: fx.Graph) -> tuple[str, ...]:
    """Parameters of floats in the order of their first use; those that nothing reads are not there."""
    known = set(program.graph_signature.parameters)
    read = [str(node.target) for user in graph.nodes for node in user.all_input_nodes if node.op == "get_attr"]
    return tuple(name for name in dict.fromkeys(read) if name in known and program.state_dict[name].is_floating_point())


def _matched(wanted: Mapping[str, Sequence[str]], parameters: Sequence[str]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    problems = []
    for layer, patterns in wanted.items():
        found = [name for name in parameters if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        problems += [f"no parameter matches {list(patterns)} of `{layer}`"] if not found else []
        problems += [f"`{name}` is in `{owner[name]}` and in `{layer}`" for name in found if name in owner]
        owner |= dict.fromkeys(found, layer)
        members[layer] = found
    if problems or not members:
        raise TargetError(
            "groups: " + ("; ".join(problems) or "expected at least one, but got none"),
            "parameters: " + ", ".join(parameters[:20]) + (", …" if len(parameters) > 20 else ""),
        )
    return members


def _is_norm_of(node: fx.Node, parameters: Sequence[str]) -> bool:
    """Whether it is a batch norm whose scale is one of these parameters."""
    scale = node.args[1] if node.target is _BATCH_NORM else None
    return isinstance(scale, fx.Node) and scale.op == "get_attr" and str(scale.target) in parameters


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
        needed, stack = set(), [network._output]
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
