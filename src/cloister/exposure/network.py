"""A classifier as a functional graph with named parameters, and which of them count as one layer."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import operator
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from cloister.compile.capture import capture
from cloister.errors import TargetError, UnsupportedModel

__all__ = ["Group", "Network", "is_norm_of"]

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
        nodes = [node for node in self.graph.nodes if is_norm_of(node, parameters)]
        buffers = dict.fromkeys(str(arg.target) for node in nodes for arg in node.args[3:5])
        return Group(name=name, parameters=parameters, buffers=tuple(buffers))

    @property
    def output(self) -> fx.Node:
        """What gives the logits."""
        end = next(node for node in self.graph.nodes if node.op == "output")
        found: fx.Node = end.all_input_nodes[0]
        return found

    def part(self, values: Sequence[fx.Node]) -> fx.GraphModule:
        """Images to some values, as a tuple."""
        graph = fx.Graph()
        made: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if node.op != "output":
                made[node] = graph.node_copy(node, made.__getitem__)
        graph.output(tuple(made[value] for value in values))
        graph.eliminate_dead_code()
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


def is_norm_of(node: fx.Node, parameters: Sequence[str]) -> bool:
    """Whether it is a batch norm whose scale is one of these parameters."""
    scale = node.args[1] if node.target is _BATCH_NORM else None
    return isinstance(scale, fx.Node) and scale.op == "get_attr" and str(scale.target) in parameters
