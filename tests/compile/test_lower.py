"""Captured, quantized and lowered models against PyTorch and torchao."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from cloister.compile import ir
from cloister.compile.capture import capture
from cloister.compile.lower import lower
from cloister.compile.quantize import quantize
from tests import oracle
from tests.models import IMAGE, MODELS, Lambda, build, conv, images


def run_oracle(graph, x):
    return oracle.run(graph, x.numpy())[graph.output]


def foreign(graph):
    return [op.operator for op in graph.ops if isinstance(op, ir.Foreign)]


@pytest.mark.parametrize("name", MODELS)
def test_float32_lowered_agrees_with_pytorch(name):
    model, shape = build(name)
    graph = lower(capture(model, shape).module)
    x = images(shape, 5)
    with torch.no_grad():
        expected = model(x).numpy()
    assert not foreign(graph)
    np.testing.assert_allclose(run_oracle(graph, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_int8_lowered_agrees_with_torchao(name):
    model, shape = build(name)
    captured = capture(model, shape)
    converted = quantize(captured, images(shape, 64, seed=2))
    graph = lower(converted)
    x = images(shape, 50)
    with torch.no_grad():
        expected = converted(x).numpy()
    result = run_oracle(graph, x)
    assert not foreign(graph)
    # A sum that torch rounds to the other side of a half moves an int8 value by one; nothing more may differ.
    step = np.abs(expected).max() / 64
    assert np.abs(result - expected).max() <= step
    assert np.mean(np.abs(result - expected) > 1e-4 * np.abs(expected).max()) < 0.05


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("softmax", "softmax_of_channels")])
def test_int8_work_stays_int8(name):
    """Between the first and the last layer nothing is computed in float32 (a silent fallback would be slow)."""
    model, shape = build(name)
    graph = lower(quantize(capture(model, shape), images(shape, 32)))
    floats = [op for op in graph.ops if graph.tensors[op.output].dtype == "float32"]
    last = max(i for i, op in enumerate(graph.ops) if isinstance(op, ir.Conv))
    assert all(graph.ops.index(op) >= last for op in floats)


def test_layers_keep_their_names_and_fold_batch_norms():
    model, shape = build("batch_norms")
    captured = capture(model, shape)
    assert list(lower(captured.module).layers()) == ["first", "a", "twice", "shared", "fc"]
    assert captured.aliases == {"folded": "a", "last": "fc"}


def test_capture_leaves_the_model_alone():
    model, shape = build("batch_norms")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    capture(model, shape)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_batch_norm_over_a_sequence_is_not_folded_wrongly():
    model = Lambda(lambda m, x: m.n(m.a(x)), a=nn.Linear(6, 8), n=nn.BatchNorm1d(4)).eval()
    model.n.running_mean.normal_()
    graph = lower(capture(model, (4, 6)).module)
    assert foreign(graph)  # BatchNorm1d normalises axis 1, which is not the linear layer's output


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: torch.sigmoid(m.a(x)), "no such operation"),
        (lambda m, x: m.a(x) + 1.0, "constant"),
        (lambda m, x: m.a(x) + m.a(x).mean((2, 3), keepdim=True), "different shapes"),
        (lambda m, x: m.a(x).mean(1), "mean over the axes"),
        (lambda m, x: F.softmax(m.a(x), dim=2), "softmax over axis 2"),
        (lambda m, x: F.pad(m.a(x), (1, 1, 1, 1), mode="reflect"), "no such operation"),
        (lambda m, x: F.gelu(m.a(x)), "no such operation"),
        (lambda m, x: F.conv2d(x, m.a.weight * x.mean()), "computed, not constant"),
        (lambda m, x: torch.cat([m.a(x), m.a(x)], 0)[: x.shape[0]], "no such operation"),
    ],
)
@pytest.mark.parametrize("bits", [8, 32])
def test_what_cannot_be_lowered_is_foreign_with_its_reason(function, reason, bits):
    captured = capture(Lambda(function, a=conv(3, 4)).eval(), IMAGE)
    module = captured.module if bits == 32 else quantize(captured, images(IMAGE, 8))
    graph = lower(module)
    reasons = [op.reason for op in graph.ops if isinstance(op, ir.Foreign)]
    assert any(reason in r for r in reasons)
    assert "a" in list(graph.layers())


def test_in_place_on_a_view_is_functional():
    """A ReLU in place on a flattened tensor changes what was flattened."""

    def forward(m, x):
        x = m.a(x)
        flat = torch.flatten(x, 1)
        flat.relu_()
        return m.fc(flat) + m.fc(torch.flatten(x, 1))

    model = Lambda(forward, a=conv(3, 4), fc=nn.Linear(4 * 120, 5)).eval()
    x = images(IMAGE, 3)
    with torch.no_grad():
        expected = model(x).numpy()
    result = run_oracle(lower(capture(model, IMAGE).module), x)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_dead_unit_with_a_large_bias_fits_int32():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 50.0
    converted = quantize(capture(model, (4,)), images((4,), 32) * 1e-3)
    graph = lower(converted)
    first = next(op for op in graph.ops if isinstance(op, ir.Conv))
    assert np.abs(first.bias.astype(np.int64)).max() < 2**30
    x = images((4,), 8) * 1e-3
    with torch.no_grad():
        np.testing.assert_allclose(run_oracle(graph, x), converted(x).numpy(), rtol=0.02, atol=0.02)


def test_moving_numbers_keeps_their_scale():
    """A pool that got a scale of its own (its smallest value is larger) would cost an operation and a rounding."""
    model, shape = build("max_pools")
    graph = lower(quantize(capture(model, shape), images(shape, 32)))
    pool = next(op for op in graph.ops if isinstance(op, ir.MaxPool))
    assert [type(op) for op in graph.ops if pool.output in op.inputs] == [ir.Conv]


def test_layer_whose_sums_could_overflow_is_left_to_torch():
    model = nn.Linear(65537, 2)
    assert foreign(lower(capture(model, (65537,)).module)) == ["aten.linear.default"]


def test_int8_tensor_that_torch_reads_too_is_dequantized_for_it():
    def forward(m, x):
        x = F.relu(m.a(x))
        return torch.tanh(x) * m.b(x)

    model = Lambda(forward, a=conv(3, 4), b=conv(4, 4)).eval()
    converted = quantize(capture(model, IMAGE), images(IMAGE, 32))
    graph = lower(converted)
    dtypes = {name: tensor.dtype for name, tensor in graph.tensors.items()}
    copies = [op for op in graph.ops if isinstance(op, ir.Copy)]
    assert [(dtypes[op.inputs[0]], dtypes[op.output]) for op in copies] == [("float32", "int8"), ("int8", "float32")]
    (tanh,) = [op for op in graph.ops if isinstance(op, ir.Foreign) and "tanh" in op.operator]
    assert tanh.inputs == (copies[1].output,)
