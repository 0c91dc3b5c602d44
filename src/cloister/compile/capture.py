"""From a PyTorch model to a functional graph whose layers keep their names.

The graph is in the exported (ATen) form, without in-place operations, with batch norms folded into the convolution
or linear layer before them. Quantization and lowering both start from it.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
import warnings
from typing import Any

import torch
from torch import fx, nn

from cloister.compile.operators import IDENTITIES
from cloister.errors import TargetError, UnsupportedModel

__all__ = ["Captured", "affine", "capture"]

aten = torch.ops.aten
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default
_FOLDABLE = (aten.conv2d.default, aten.conv2d.padding, aten.linear.default)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captured:
    """A model as a functional graph.

    Attributes:
        module: takes (N, *input_shape) float32; nodes with parameters carry `meta["custom"]["layer"]`.
        input_shape: without the batch axis.
        aliases: modules that are part of another layer, by name: folded batch norms, and modules with tied weights.
        dynamic_batch: whether any N works, or only 1.
    """

    module: fx.GraphModule
    input_shape: tuple[int, ...]
    aliases: dict[str, str]
    dynamic_batch: bool


def affine(x: torch.Tensor, slope: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """A batch norm by itself: x (N, C, ...) times slope (C,), plus shift (C,)."""
    axes = [1, -1] + [1] * (x.dim() - 2)
    return x * slope.view(axes) + shift.view(axes)


def capture(model: nn.Module | torch.export.ExportedProgram, input_shape: tuple[int, ...]) -> Captured:
    """Export a model and bring its graph into the form that the compiler works on.

    Args:
        model: a module (put into evaluation mode for the export, then back), or an exported program.
        input_shape: of one image, without the batch axis.

    Returns:
        The captured model; the given one is not changed.

    Raises:
        UnsupportedModel: it cannot be exported, or is not one tensor in, one tensor out.
        TargetError: the shape does not fit the model.
    """
    program = _export(model, input_shape) if isinstance(model, nn.Module) else model
    _check_signature(program)
    placeholder = _input_node(program.graph)
    shape = placeholder.meta["val"].shape
    if tuple(shape[1:]) != tuple(input_shape):
        raise TargetError(
            f"input shape: the exported program expects {_text(shape[1:])}, but got {_text(input_shape)}",
            "leave the shape out, or export the program again",
        )
    dynamic = not isinstance(shape[0], int)
    if not dynamic and shape[0] != 1:
        raise UnsupportedModel(
            f"exported program: expected a dynamic batch axis or a batch of 1, but got {shape[0]}",
            [(placeholder.name, "input", f"batch fixed to {shape[0]}")],
            "export it with dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)",
        )
    # An empty table decomposes nothing but makes every in-place operation and view functional.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = program.run_decompositions({}).module()
    assert isinstance(module, fx.GraphModule)
    _drop_what_does_nothing(module)
    _name_layers(module)
    aliases = _tied_layers(model) if isinstance(model, nn.Module) else {}
    aliases |= _fold_batch_norms(module)
    return Captured(module=module, input_shape=tuple(input_shape), aliases=aliases, dynamic_batch=dynamic)


def _tied_layers(model: nn.Module) -> dict[str, str]:
    """Modules whose parameters are another module's: export knows them by one name only, the last."""
    homes: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        homes.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return {name: names[-1] for names in homes.values() for name in names[:-1] if name != names[-1]}


def _text(shape: Any) -> str:
    return "(" + ", ".join(str(s) for s in shape) + ")"


def _export(model: nn.Module, input_shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """Export with a dynamic batch if the model allows it, with a batch of 1 otherwise."""
    _check_arguments(model)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                example = torch.zeros(2, *input_shape)
                return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            except Exception:  # whatever export dislikes about the batch axis
                return torch.export.export(model, (torch.zeros(1, *input_shape),))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModel(
            f"torch.export cannot capture the model with input {_text(input_shape)}: {reason}",
            [("(model)", "torch.export", reason)],
            "see that `torch.export.export(model, (x,))` works for a float32 input of this shape",
        ) from error
    finally:
        for module, was_training in training.items():
            module.training = was_training


def _check_arguments(model: nn.Module) -> None:
    """`forward` takes one argument without a default."""
    parameters = inspect.signature(model.forward).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) > 1:
        raise _bad_signature([("(input)", "signature", f"expected 1 tensor, but the model takes {len(needed)}")])


def _bad_signature(problems: list[tuple[str, str, str]]) -> UnsupportedModel:
    return UnsupportedModel(
        "the model's signature: expected one float32 tensor (N, …) in and one out",
        problems,
        "wrap it in a module whose forward takes one tensor and returns one",
    )


def _check_signature(program: torch.export.ExportedProgram) -> None:
    """One float32 tensor (N, …) in, one with the same N out."""
    inputs, outputs = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    arguments = program.call_spec.in_spec.child(0)
    problems = []
    if len(inputs) != 1 or arguments.num_children != 1 or not arguments.child(0).is_leaf():
        problems.append(("(input)", "signature", f"expected 1 tensor, but the model takes {_count(inputs)}"))
    if len(outputs) != 1 or not program.call_spec.out_spec.is_leaf():
        problems.append(("(output)", "signature", f"expected 1 tensor, but the model gives {_count(outputs)}"))
    if not problems:
        nodes = {node.name: node for node in program.graph.nodes}
        values = [nodes[name].meta.get("val") if name in nodes else None for name in (inputs[0], outputs[0])]
        problems += _tensor_problems("(input)", values[0], None)
        problems += _tensor_problems("(output)", values[1], values[0])
    if problems:
        raise _bad_signature(problems)


def _count(leaves: Any) -> str:
    return str(len(leaves)) if len(leaves) != 1 else "a container of 1"


def _tensor_problems(side: str, value: Any, source: Any) -> list[tuple[str, str, str]]:
    """Whether a value is float32 with a batch axis in front, the one of `source`."""
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        found = getattr(value, "dtype", type(value).__name__)
        return [(side, "signature", f"expected a float32 tensor, but it is {found}")]
    if value.dim() < 2:
        return [(side, "signature", f"expected two axes or more, but its shape is {_text(value.shape)}")]
    if isinstance(source, torch.Tensor) and str(value.shape[0]) != str(source.shape[0]):
        return [(side, "signature", f"expected one row for each image, but its shape is {_text(value.shape)}")]
    return []


def _input_node(graph: fx.Graph) -> fx.Node:
    """The last placeholder: those before it are parameters and buffers."""
    nodes: list[fx.Node] = [node for node in graph.nodes if node.op == "placeholder"]
    return nodes[-1]


def _drop_what_does_nothing(module: fx.GraphModule) -> None:
    """Drop shape checks (sessions check their input themselves), dropout and the like; views become reshapes."""
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
        elif node.target in IDENTITIES:
            node.replace_all_uses_with(node.args[0], propagate_meta=False)
        elif node.target is aten.view.default:
            # A view holds only for the strides at export; what quantization puts in between changes them.
            node.target = aten.reshape.default
    module.graph.eliminate_dead_code()
    module.recompile()


def _name_layers(module: fx.GraphModule) -> None:
    """Note in every operation the module it belongs to, and all parameters that it reads.

    A parameter is read also through what is computed of it alone (`weight.t()`): whoever sees the result sees it.
    """
    constants: dict[fx.Node, tuple[str, ...]] = {}
    same: dict[int, str] = {}  # one name for parameters that share their memory
    for node in module.graph.nodes:
        inputs = node.all_input_nodes
        read = tuple(dict.fromkeys(name for arg in inputs for name in constants.get(arg, ())))
        if node.op == "get_attr":
            constants[node] = (str(node.target),)
            same.setdefault(_memory(module, str(node.target)), str(node.target))
        elif node.op == "call_function" and inputs and all(arg in constants for arg in inputs):
            constants[node] = read
        custom = node.meta.setdefault("custom", {})
        custom["reads"] = tuple(dict.fromkeys(same[_memory(module, name)] for name in read))
        if read and node.op == "call_function":
            custom["layer"] = read[0].rpartition(".")[0] or read[0]
        stack = node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        custom["module"] = "" if path.startswith("_empty_nn_module_stack") else path


def _memory(module: fx.GraphModule, name: str) -> int:
    tensor: torch.Tensor = operator.attrgetter(name)(module)
    return tensor.untyped_storage().data_ptr()


def _fold_batch_norms(module: fx.GraphModule) -> dict[str, str]:
    """Fold each batch norm into the layer before it, or turn it into an `affine`."""
    folded = {}
    for node in list(module.graph.nodes):
        if node.target is _BATCH_NORM and _is_constant(node.args[1:5]):
            slope, shift = _slope_and_shift(module, node)
            producer = node.args[0]
            if _can_fold(producer, node):
                _fold(module, producer, slope, shift)
                folded[node.meta["custom"]["layer"]] = producer.meta["custom"]["layer"]
                producer.meta["custom"]["reads"] += node.meta["custom"]["reads"]
                _replace_result(node, producer)
            else:
                _replace_result(node, _insert_affine(module, node, slope, shift))
    module.graph.eliminate_dead_code()
    module.recompile()
    return folded


def _is_constant(arguments: Any) -> bool:
    return all(arg is None or arg.op == "get_attr" for arg in arguments)


def _can_fold(producer: fx.Node, batch_norm: fx.Node) -> bool:
    """Only a layer used once, whose output nothing else reads, and whose channels are the batch norm's."""
    if producer.target not in _FOLDABLE or len(producer.users) != 1:
        return False
    parameters = [arg for arg in producer.args[1:3] if isinstance(arg, fx.Node)]
    is_flat = batch_norm.meta["val"][0].dim() == 2 if producer.target is aten.linear.default else True
    return is_flat and all(arg.op == "get_attr" and len(arg.users) == 1 for arg in parameters)


def _attribute(module: fx.GraphModule, node: Any) -> torch.Tensor:
    """The parameter or buffer that a node reads, in float64."""
    value: torch.Tensor = operator.attrgetter(str(node.target))(module)
    return value.detach().double()


def _slope_and_shift(module: fx.GraphModule, node: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch norm as x * slope + shift, in float64."""
    arguments: Any = node.args
    _, weight, bias, mean, variance, _, eps = arguments
    scale = torch.rsqrt(_attribute(module, variance) + eps)
    if weight is not None:
        scale = scale * _attribute(module, weight)
    shift = -_attribute(module, mean) * scale
    return scale, shift if bias is None else shift + _attribute(module, bias)


def _fold(module: fx.GraphModule, layer: fx.Node, slope: torch.Tensor, shift: torch.Tensor) -> None:
    """Weights and bias of a convolution or linear layer that does the batch norm, too."""
    weight = _attribute(module, layer.args[1])
    scaled = weight * slope.view([-1] + [1] * (weight.dim() - 1))
    has_bias = len(layer.args) > 2 and layer.args[2] is not None
    moved = shift + _attribute(module, layer.args[2]) * slope if has_bias else shift
    name = layer.meta["custom"]["layer"]
    with module.graph.inserting_before(layer):
        new = [
            _constant(module, name, "folded_weight", scaled.float()),
            _constant(module, name, "folded_bias", moved.float()),
        ]
    layer.args = (layer.args[0], *new, *layer.args[3:])


def _constant(module: fx.GraphModule, layer: str, kind: str, value: torch.Tensor) -> fx.Node:
    """Register a tensor under a flat name of its own, and read it."""
    name = f"{layer}.{kind}".replace(".", "_")
    while hasattr(module, name):
        name += "_"
    module.register_buffer(name, value.contiguous())
    return module.graph.get_attr(name)


def _insert_affine(module: fx.GraphModule, node: fx.Node, slope: torch.Tensor, shift: torch.Tensor) -> fx.Node:
    name = node.meta["custom"].get("layer", node.name)
    with module.graph.inserting_before(node):
        constants = [
            _constant(module, name, "slope", slope.float()),
            _constant(module, name, "shift", shift.float()),
        ]
        new = module.graph.call_function(affine, (node.args[0], *constants))
    new.meta = dict(node.meta)
    new.meta["val"] = node.meta["val"][0]
    return new


def _replace_result(batch_norm: fx.Node, new: fx.Node) -> None:
    """Everything that reads the batch norm's first result reads `new`."""
    for user in list(batch_norm.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(new, propagate_meta=False)
