"""An exported program from anybody: it runs if it is one, and runs nothing else."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import torch

from cloister.enclave.torch_stage import TorchStage
from cloister.errors import BundleError


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(4.0))
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x, y):
        mixed = torch.sigmoid(x.reshape(x.shape[0], -1)) * self.weight + self.offset
        return mixed, y + 1


def export(*, dynamic: bool, batch: int = 2) -> bytes:
    example = (torch.zeros(batch, 2, 2), torch.zeros(batch, 3, dtype=torch.int8))
    shapes = ({0: torch.export.Dim.DYNAMIC},) * 2 if dynamic else None
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Model(), example, dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data():
    return export(dynamic=True)


@pytest.mark.parametrize("options", [{"dynamic": True}, {"dynamic": False, "batch": 1}, {"dynamic": False, "batch": 3}])
@pytest.mark.parametrize("n_images", [1, 2, 3, 7])
def test_any_batch_runs_on_any_program(options, n_images):
    rng = np.random.default_rng(n_images)
    x = rng.normal(size=(n_images, 2, 2)).astype(np.float32)
    y = rng.integers(-100, 100, (n_images, 3), dtype=np.int8)
    with torch.inference_mode():
        expected = Model()(torch.from_numpy(x), torch.from_numpy(y))
    got = TorchStage(export(**options), "part 0").run([x, y])
    assert [g.dtype for g in got] == [np.float32, np.int8]
    for value, reference in zip(got, expected, strict=True):
        np.testing.assert_allclose(value, reference.numpy(), rtol=1e-6)


def test_wrong_inputs_are_named(data):
    with pytest.raises(BundleError, match="part 0 does not run"):
        TorchStage(data, "part 0").run([np.zeros((2, 5), np.float32), np.zeros((2, 3), np.int8)])


def rewrite(data: bytes, changed: dict[str, bytes]) -> bytes:
    """The archive with other or further members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        members = {name: old.read(name) for name in old.namelist()}
        for name, content in (members | changed).items():
            new.writestr(name, content)
    return buffer.getvalue()


def graph_of(data: bytes) -> dict:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return json.loads(archive.read("archive/models/model.json"))


def test_rewritten_archive_still_loads(data):
    TorchStage(rewrite(data, {}), "part 0")


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.aten.sin",
        "_operator.attrgetter",
        "math.sin",
        "#higher_order",
        "torch.ops.loaded.anything.default",
        "torch.ops.aten.a.b.__class__",
    ],
)
def test_foreign_operator_is_refused(target, data):
    graph = graph_of(data)
    graph["graph_module"]["graph"]["nodes"][-1]["target"] = target
    with pytest.raises(BundleError, match="operators of aten"):
        TorchStage(rewrite(data, {"archive/models/model.json": json.dumps(graph).encode()}), "part 0")


@pytest.mark.parametrize(
    "expression",
    ["__import__('os').system('id')", "exec('1')", "s0.__class__", "Symbol", "[s0 for s0 in (1,)]", "lambda: 1"],
)
def test_expression_that_is_no_size_is_refused_unevaluated(expression, data):
    text = json.dumps(graph_of(data))
    assert "Symbol('s" in text
    graph = json.loads(text, object_hook=lambda d: d | {"expr_str": expression} if "expr_str" in d else d)
    with pytest.raises(BundleError):
        TorchStage(rewrite(data, {"archive/models/model.json": json.dumps(graph).encode()}), "part 0")


@pytest.mark.parametrize(
    "name",
    [
        "archive/data/constants/opaque_obj_0",
        "archive/data/constants/custom_obj_0",
        "archive/data/aotinductor/model/a.so",
        "archive/data/weights/model.pt",
        "archive/models/other.json",
        "serialized_exported_program.json",
        "archive/extra/run.py",
    ],
)
def test_foreign_member_is_refused(name, data):
    with pytest.raises(BundleError, match="part 0"):
        TorchStage(rewrite(data, {name: b"{}"}), "part 0")


class Bomb:
    """Leaves a trace if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_object_is_never_opened(data, tmp_path):
    buffer = io.BytesIO()
    torch.save(Bomb(tmp_path / "trace"), buffer)
    with pytest.raises(BundleError):
        TorchStage(rewrite(data, {"archive/data/sample_inputs/model.pt": buffer.getvalue()}), "part 0")
    config = {
        "config": {"weight": {"path_name": "weight_0", "is_param": True, "use_pickle": True, "tensor_meta": None}}
    }
    changed = {
        "archive/data/weights/model_weights_config.json": json.dumps(config).encode(),
        "archive/data/weights/weight_0": buffer.getvalue(),
    }
    with pytest.raises(BundleError):
        TorchStage(rewrite(data, changed), "part 0")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("noise", [b"", b"PK\3\4", bytes(1000), b"{}"])
def test_noise_is_refused(noise):
    with pytest.raises(BundleError, match="no exported program"):
        TorchStage(noise, "part 0")


def test_cut_or_changed_archive_is_refused_or_runs(data):
    rng = np.random.default_rng(0)
    for length in rng.integers(0, len(data), 20):
        with pytest.raises(BundleError):
            TorchStage(data[:length], "part 0")
