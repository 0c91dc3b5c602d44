"""From a model to a bundle to answers, on small models: plans, budgets, refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import cloister
from cloister.boards import SUITES, load_board
from cloister.errors import DataError, OutputExists, PlanError, TargetError, UnsupportedModel, UserError
from cloister.protection import lower_target, protect, protect_lowered
from cloister.target import Target
from tests import oracle
from tests.models import MODELS, Lambda, build, conv, images


def make_target(name, seed=0):
    model, shape = build(name, seed)
    return Target(model=model, name=name, input_shape=shape)


def make_lowered(name, bits):
    target = make_target(name)
    return lower_target(target, bits=bits, calibration=images(target.input_shape, 64, seed=2).numpy())


def run(path, x):
    with cloister.load(path) as session:
        return session.run(x), session.stats


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("name", MODELS)
def test_every_split_gives_the_same_bits_as_the_oracle(name, bits, tmp_path):
    lowered = make_lowered(name, bits)
    graph = lowered.graph
    x = images(graph.tensors[graph.input].shape, 3).numpy()
    expected = oracle.run(graph, x)[graph.output]
    layers = list(graph.layers())
    requests = {"none", "all", "last:1", ",".join(layers[::2]), layers[0]}
    results = []
    for number, inside in enumerate(sorted(requests)):
        path = tmp_path / f"{number}.cloister"
        smallest = protect_lowered(lowered, path, inside=inside).manifest.plan.smallest_budget_bytes
        for budget in {smallest or None, None}:
            protected = protect_lowered(lowered, path, inside=inside, budget_bytes=budget, force=True)
            result, stats = run(path, x)
            results.append(result)
            assert stats.inside_peak_bytes <= protected.manifest.plan.inside_bytes
            if budget:
                assert protected.manifest.plan.inside_bytes <= budget
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    if bits == 8:
        np.testing.assert_array_equal(results[0], expected)
    else:
        np.testing.assert_allclose(results[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("budget", ["none", "smallest"])
def test_every_suite_gives_the_same_bits(budget, bits, tmp_path):
    lowered = make_lowered("residual", bits)
    x = images(lowered.captured.input_shape, 3).numpy()
    results = []
    for suite in SUITES:
        path = tmp_path / f"{suite}.cloister"
        plan = protect_lowered(lowered, path, inside="all", suite=suite).manifest.plan
        if budget == "smallest":
            smallest = plan.smallest_budget_bytes
            protect_lowered(lowered, path, inside="all", suite=suite, budget_bytes=smallest, force=True)
        result, stats = run(path, x)
        results.append(result)
        assert stats.slices_opened > 0
    np.testing.assert_array_equal(results[0], results[1])
    if bits == 8:
        graph = lowered.graph
        np.testing.assert_array_equal(results[0], oracle.run(graph, x)[graph.output])


@pytest.mark.parametrize(("name", "bits"), [("residual", 8), ("residual", 32), ("shapes", 8), ("batch_norms", 8)])
def test_smallest_budget_works_and_one_byte_less_does_not(name, bits, tmp_path):
    lowered = make_lowered(name, bits)
    path = tmp_path / "m.cloister"
    with pytest.raises(PlanError) as caught:
        protect_lowered(lowered, path, inside="all", budget_bytes=1)
    smallest = protect_lowered(lowered, path, inside="all").manifest.plan.smallest_budget_bytes
    assert str(smallest) in f"{caught.value} {caught.value.hint}"
    protected = protect_lowered(lowered, path, inside="all", budget_bytes=smallest, force=True)
    _, stats = run(path, images(lowered.captured.input_shape, 2).numpy())
    assert stats.inside_peak_bytes <= smallest
    assert any(layer.n_slices > 1 for layer in protected.manifest.plan.layers)
    with pytest.raises(PlanError, match=str(smallest)):
        protect_lowered(lowered, path, inside="all", budget_bytes=smallest - 1, force=True)


def test_slicing_off_refuses_what_does_not_fit_whole(tmp_path):
    lowered = make_lowered("shapes", 8)
    smallest = protect_lowered(lowered, tmp_path / "a", inside="all").manifest.plan.smallest_budget_bytes
    protect_lowered(lowered, tmp_path / "b", inside="all", budget_bytes=smallest)
    with pytest.raises(PlanError, match="`up`"):
        protect_lowered(lowered, tmp_path / "c", inside="all", budget_bytes=smallest, slicing="off")


BOARD = """
[tiny]
title = "A tiny board"
platform = "tiny"
heap_bytes = 65_536
stack_bytes = 65_536
shared_bytes = 65_536
march = "armv8-a"
suite = "ChaCha20-Poly1305"
secure_ram = false
rpmb = false
secure_boot = true
emulated = false
"""


@pytest.fixture
def tiny(tmp_path):
    """A profile of a board with 48 KiB for the inside and 64 KiB for a call."""
    path = tmp_path / "tiny.toml"
    path.write_text(BOARD)
    return str(path)


def call_bytes(manifest):
    """What the largest call for one group takes: run block, images and results, and a sealed slice, in pages."""
    n_bytes = {t.name: int(np.prod(t.shape)) * {"int8": 1, "float32": 4}[t.dtype] for t in manifest.tensors}
    payload = max(sum(n_bytes[n] for n in (*s.inputs, *s.outputs)) for s in manifest.steps if s.world == "inside")
    largest = max(piece.n_bytes for piece in manifest.slices) + 16
    return 3 * 4096 + manifest.plan.lanes * payload + -(-largest // 4096) * 4096


def test_board_gives_budget_cipher_and_label(tiny, tmp_path):
    lowered = make_lowered("residual", 8)
    for board, name in (("rpi3", "rpi3"), ("qemu-virt", "qemu-virt"), (tiny, "tiny")):
        protected = protect_lowered(lowered, tmp_path / "m", inside="all", board=board, force=True)
        manifest, profile = protected.manifest, load_board(board)
        assert manifest.suite == profile.suite == "ChaCha20-Poly1305"
        assert manifest.plan.board.name == name
        assert manifest.plan.board.demonstration == profile.weaknesses
        assert manifest.plan.budget_bytes == profile.inside_bytes >= manifest.plan.inside_bytes
    result, stats = run(protected.path, x := images(lowered.captured.input_shape, 3).numpy())
    np.testing.assert_array_equal(result, oracle.run(lowered.graph, x)[lowered.graph.output])
    assert stats.planned_for == manifest.plan.board
    assert stats.board is None


@pytest.mark.parametrize("name", ["twice", "shapes", "residual", "batch_norms"])
@pytest.mark.parametrize("bits", [8, 32])
def test_calls_of_a_board_carry_every_slice(name, bits, tiny, tmp_path):
    manifest = protect_lowered(make_lowered(name, bits), tmp_path / "m", inside="all", board=tiny).manifest
    assert call_bytes(manifest) <= 65536
    assert manifest.plan.smallest_budget_bytes <= manifest.plan.inside_bytes


def test_wide_layers_are_cut_for_a_boards_calls_also_where_all_stay(tmp_path, tiny):
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 60)).eval()
    target = Target(model=model, name="wide", input_shape=(64,))
    board = tmp_path / "large.toml"
    board.write_text(BOARD.replace("heap_bytes = 65_536", "heap_bytes = 1_048_576"))
    manifest = protect(target, tmp_path / "m", inside="all", bits=32, board=str(board)).manifest
    assert call_bytes(manifest) <= 65536
    assert len(manifest.slices) > 2
    assert all(piece.resident for piece in manifest.slices)
    x = images((64,), 5).numpy()
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "m", x)[0], model(torch.from_numpy(x)).numpy(), atol=1e-5)
    with pytest.raises(PlanError, match=r"leaves .* whole `0`"):
        protect(target, tmp_path / "m", inside="all", bits=32, board=str(board), slicing="off", force=True)


def test_budget_may_be_smaller_than_the_boards_and_not_larger(tiny, tmp_path):
    lowered = make_lowered("residual", 8)
    most = load_board(tiny).inside_bytes
    plan = protect_lowered(lowered, tmp_path / "a", inside="all", board=tiny, budget_bytes=most).manifest.plan
    assert plan.budget_bytes == most
    protect_lowered(lowered, tmp_path / "b", inside="all", board=tiny, budget_bytes=plan.smallest_budget_bytes)
    with pytest.raises(PlanError, match=f"at most {most} bytes for tiny, but got {most + 1}: .* 65536 "):
        protect_lowered(lowered, tmp_path / "c", inside="all", board=tiny, budget_bytes=most + 1)
    assert not (tmp_path / "c").exists()


def test_own_cipher_wins_over_the_boards(tiny, tmp_path):
    protected = protect_lowered(make_lowered("twice", 8), tmp_path / "m", inside="all", board=tiny, suite="AES-256-GCM")
    assert protected.manifest.suite == "AES-256-GCM"


def test_unknown_board_is_refused(tmp_path):
    with pytest.raises(UserError, match="no board `rpi9`"):
        protect_lowered(make_lowered("twice", 8), tmp_path / "m", inside="none", board="rpi9")


def test_every_layer_has_a_reason(tmp_path):
    plan = protect_lowered(make_lowered("residual", 8), tmp_path / "m", inside="last:2").manifest.plan
    assert [layer.inside for layer in plan.layers] == [False, False, False, True, True]
    assert all(layer.reason for layer in plan.layers)
    assert "last 2 of 5" in plan.layers[-1].reason


def test_foreign_operations_run_in_torch_outside(tmp_path):
    def forward(m, x):
        x = torch.tanh(m.a(x))
        first, second = torch.split(x, 2, dim=1)
        return m.fc(torch.flatten(m.b(first * second), 1))

    model = Lambda(forward, a=conv(3, 4), b=conv(2, 2), fc=nn.Linear(2 * 64, 5)).eval()
    target = Target(model=model, name="mixed", input_shape=(3, 8, 8))
    x = images((3, 8, 8), 3)
    with torch.no_grad():
        expected = model(x).numpy()
    for inside in ("none", "b", "fc", "b,fc"):
        protected = protect(target, tmp_path / f"{inside}.cloister", inside=inside, bits=32)
        assert "torch" in {step.world for step in protected.manifest.steps}
        result, _ = run(protected.path, x.numpy())
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    quantized = protect(target, tmp_path / "q", inside="b", bits=8, calibration=x.numpy())
    result, _ = run(quantized.path, x.numpy())
    np.testing.assert_allclose(result, expected, atol=0.1)


def test_all_unsupported_operations_are_reported_at_once(tmp_path):
    model = Lambda(lambda m, x: m.b(m.a(x).sigmoid()).tanh(), a=conv(3, 4), b=conv(4, 4)).eval()
    target = Target(model=model, name="bad", input_shape=(3, 8, 8))
    with pytest.raises(UnsupportedModel) as caught:
        protect(target, tmp_path / "m", inside="all", bits=32)
    assert [p[1] for p in caught.value.problems] == ["aten.sigmoid.default", "aten.tanh.default"]
    assert not (tmp_path / "m").exists()


def test_model_with_a_fixed_batch_of_one_runs_image_by_image(tmp_path):
    model = Lambda(lambda m, x: m.b(torch.tanh(m.a(x)).view(1, 2, 2).flatten(1)), a=nn.Linear(4, 4), b=nn.Linear(4, 3))
    target = Target(model=model.eval(), name="one", input_shape=(4,))
    x = images((4,), 3)
    with torch.no_grad():
        expected = np.concatenate([model(row[None]).numpy() for row in x])
    protected = protect(target, tmp_path / "m", inside="b", bits=32)
    np.testing.assert_allclose(run(protected.path, x.numpy())[0], expected, rtol=1e-4, atol=1e-6)


def test_int8_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="int8 needs images"):
        protect(make_target("twice"), tmp_path / "m", inside="all")


@pytest.mark.parametrize("bad", [np.zeros((4, 3, 12, 11), np.float32), np.zeros((4, 3, 12, 10))])
def test_calibration_images_of_another_shape_or_dtype_are_refused(bad, tmp_path):
    with pytest.raises(DataError, match="expected float32 of shape"):
        protect(make_target("twice"), tmp_path / "m", inside="all", calibration=bad)


def test_existing_output_is_kept(tmp_path):
    path = tmp_path / "m.cloister"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExists):
        protect(make_target("twice"), path, inside="none", bits=32)
    assert path.read_bytes() == b"precious"


def test_the_same_call_gives_the_same_plan_and_answers(tmp_path):
    target = make_target("concat")
    x = images(target.input_shape, 40, seed=3).numpy()
    manifests = [protect(target, tmp_path / str(i), inside="last:2", calibration=x, seed=5).manifest for i in range(2)]
    assert manifests[0] == manifests[1]
    np.testing.assert_array_equal(run(tmp_path / "0", x)[0], run(tmp_path / "1", x)[0])


def test_protecting_does_not_change_the_model(tmp_path):
    target = make_target("batch_norms")
    before = {k: v.clone() for k, v in target.model.state_dict().items()}
    protect(target, tmp_path / "m", inside="all", calibration=images(target.input_shape, 8).numpy())
    assert all(torch.equal(v, before[k]) for k, v in target.model.state_dict().items())


def make_tied(second):
    """An encoder whose parameters a second layer uses, too."""
    model = Lambda(lambda m, x: second(m, F.relu(m.enc(x))), enc=nn.Linear(6, 6))
    model.back = nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    return Target(model=model.eval(), name="tied", input_shape=(6,))


def test_layer_made_of_another_ones_weights_goes_inside_with_it(tmp_path):
    target = make_tied(lambda m, x: F.linear(x, m.enc.weight.t(), m.back[0]))
    protected = protect(target, tmp_path / "m", inside="enc", bits=32)
    assert [step.world for step in protected.manifest.steps] == ["inside"]
    weights = target.model.enc.weight.detach().numpy()
    for seen in (weights, weights.T.copy()):
        assert seen.tobytes()[:24] not in protected.path.read_bytes()


@pytest.mark.parametrize("inside", ["enc", "back"])
def test_parameters_of_the_inside_do_not_stay_outside_in_another_layer(inside, tmp_path):
    target = make_tied(lambda m, x: F.linear(x, m.back, m.enc.bias))
    with pytest.raises(PlanError, match=r"enc\.bias") as caught:
        protect(target, tmp_path / "m", inside=inside, bits=32)
    assert not (tmp_path / "m").exists()
    assert set(caught.value.hint.split()[-1].split(",")) == {"enc", "back"}
    protect(target, tmp_path / "m", inside="enc,back", bits=32)


def test_shared_modules_have_one_name_and_answer_to_the_other(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    model[2].weight = model[0].weight
    target = Target(model=model, name="shared", input_shape=(4,))
    protected = protect(target, tmp_path / "m", inside="0", bits=32)
    assert [(layer.name, layer.inside) for layer in protected.manifest.plan.layers] == [("2", True)]
    weights = model[0].weight.detach().numpy().tobytes()
    assert weights[:32] not in protected.path.read_bytes()


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x, 3, 1, 1),
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.adaptive_avg_pool2d(x, (4, 4)),
        lambda x: F.max_pool2d(x, 2),
    ],
)
def test_pools_of_a_batch_without_channels_run_in_torch(pool, bits, tmp_path):
    """PyTorch takes a tensor of three axes for one image; here its first axis is the batch."""
    model = Lambda(lambda m, x: m.b(pool(m.a(x)).flatten(1)), a=nn.Linear(8, 8))
    model.b = nn.Linear(pool(torch.zeros(2, 8, 8)).flatten(1).shape[1], 3)
    target = Target(model=model.eval(), name="pool", input_shape=(8, 8))
    x = images((8, 8), 30)
    protected = protect(target, tmp_path / "m", inside="b", bits=bits, calibration=x.numpy())
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(run(protected.path, x.numpy())[0], expected, atol=0.1 if bits == 8 else 1e-5)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.fc(F.relu(F.conv2d(x, m.a.weight * 2, padding=1)).mean((2, 3))),
        lambda m, x: m.fc(m.over_the_width(F.relu(m.a(x))).mean((2, 3))),
        lambda m, x: m.fc(torch.clamp(torch.tanh(m.a(x)), 1.0, -1.0).mean((2, 3))),
        lambda m, x: m.fc(F.gelu(m.a(x)).mean((2, 3))),
        lambda m, x: m.fc(m.a(x).double().relu().float().mean((2, 3))),
        lambda m, x: m.fc(F.max_pool2d(m.a(x), 2, return_indices=True)[0].mean((2, 3))),
    ],
)
def test_unusual_models_run(forward, bits, tmp_path):
    model = Lambda(forward, a=conv(3, 4, bias=False), fc=nn.Linear(4, 5), over_the_width=nn.Linear(8, 8)).eval()
    target = Target(model=model, name="unusual", input_shape=(3, 8, 8))
    x = images((3, 8, 8), 40)
    with torch.no_grad():
        expected = model(x).numpy()
    for inside in ("none", "fc", "a"):
        try:
            protected = protect(target, tmp_path / "m", inside=inside, bits=bits, calibration=x.numpy(), force=True)
        except UnsupportedModel:
            assert inside == "a"
        else:
            np.testing.assert_allclose(run(protected.path, x.numpy())[0], expected, atol=0.1 if bits == 8 else 1e-5)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.fc((x - x.mean(0, keepdim=True)).flatten(1)),
        lambda m, x: F.softmax(m.fc(x.flatten(1)), dim=0),
        lambda m, x: m.fc(m.norm(x).flatten(1)),
    ],
)
def test_models_that_mix_images_are_refused(forward, tmp_path):
    model = Lambda(forward, fc=nn.Linear(48, 3), norm=nn.BatchNorm2d(3, track_running_stats=False)).eval()
    target = Target(model=model, name="mixing", input_shape=(3, 4, 4))
    with pytest.raises(UnsupportedModel, match="mixes images"):
        protect(target, tmp_path / "m", inside="none", bits=32)


def test_torch_part_knows_the_number_of_images(tmp_path):
    def forward(m, x):
        x = torch.tanh(m.a(x))
        return m.b(torch.cat([x, torch.ones(x.shape[0], 2)], dim=1))

    target = Target(model=Lambda(forward, a=nn.Linear(4, 3), b=nn.Linear(5, 2)).eval(), name="ones", input_shape=(4,))
    protected = protect(target, tmp_path / "m", inside="b", bits=32)
    for n in (1, 2, 5):
        x = images((4,), n)
        with torch.no_grad():
            np.testing.assert_allclose(run(protected.path, x.numpy())[0], target.model(x).numpy(), atol=1e-6)


def test_reshape_across_images_runs_in_torch_where_it_undoes_itself(tmp_path):
    model = Lambda(lambda m, x: m.b(F.relu(m.a(x.view(-1, 12))).view(-1, 16)), a=nn.Linear(12, 4), b=nn.Linear(16, 3))
    target = Target(model=model.eval(), name="patches", input_shape=(3, 4, 4))
    x = images((3, 4, 4), 6)
    protected = protect(target, tmp_path / "m", inside="b", bits=32)
    with torch.no_grad():
        np.testing.assert_allclose(run(protected.path, x.numpy())[0], model(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("bits", [8, 32])
def test_weights_that_are_no_numbers_are_refused(bits, tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    target = Target(model=model, name="nan", input_shape=(4,))
    with pytest.raises(TargetError, match="`2`: expected finite weights"):
        protect(target, tmp_path / "m", inside="all", bits=bits, calibration=images((4,), 8).numpy())


def test_calibration_images_that_are_no_numbers_are_refused(tmp_path):
    x = images(make_target("twice").input_shape, 8).numpy()
    x[3, 0, 0, 0] = np.inf
    with pytest.raises(DataError, match="finite"):
        protect(make_target("twice"), tmp_path / "m", inside="all", calibration=x)


@pytest.mark.parametrize(
    "options", [{"bits": 4}, {"slicing": "x"}, {"suite": "AES-128-GCM"}, {"devices": ["nobody.pub"]}]
)
def test_impossible_options_are_the_users(options, tmp_path):
    with pytest.raises(UserError):
        protect(make_target("twice"), tmp_path / "m", **{"inside": "none", "bits": 32} | options)


def test_operator_that_a_session_would_not_load_is_refused_when_protecting(tmp_path):
    """Loading one means running code that the bundle names; nobody should learn of that on the device."""
    model = Lambda(lambda m, x: m.b(torch.ops.prims.sin(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2)).eval()
    with pytest.raises(UnsupportedModel, match=r"cannot run outside.*aten"):
        protect(Target(model=model, name="prims", input_shape=(4,)), tmp_path / "m", inside="b", bits=32)
    assert not (tmp_path / "m").exists()
