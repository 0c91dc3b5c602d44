"""Engines: their names, what is not there, and that what is there gives the model's answers."""

import contextlib
import sys

import numpy as np
import pytest
import torch

from cloister.bench import compare, engines, models
from cloister.errors import PlanError, TargetError, UserError

OWN = [
    "cloister-outside",
    "cloister-outside-fp32",
    "cloister-inside",
    "cloister-inside-fp32",
    "cloister-inside@1MiB",
    "cloister-inside@256KiB",
    "cloister-inside-fp32@64MiB",
    "cloister-inside[last:3]",
    "cloister-inside[last:3]@1MiB",
]


def test_names_of_others():
    assert [peer.name for peer in engines.PEERS] == [
        "torch-eager-fp32",
        "torch-compile-fp32",
        "onnxruntime-fp32",
        "onnxruntime-int8",
        "executorch-xnnpack-int8",
        "openvino-int8",
    ]
    assert all(engines.engine_named(peer.name) is peer for peer in engines.PEERS)
    assert all((peer.bits == 32) == peer.name.endswith("fp32") for peer in engines.PEERS)


@pytest.mark.parametrize("name", OWN)
def test_names_of_ours_say_what_they_are(name):
    engine = engines.engine_named(name)
    assert engine.name == name
    assert engine == engines.OwnEngine.make(engine.inside, engine.bits, engine.budget_bytes)


def test_a_name_means_its_plan():
    engine = engines.engine_named("cloister-inside-fp32[last:2]@1.5MiB")
    assert (engine.bits, engine.inside, engine.budget_bytes) == (32, "last:2", 3 << 19)


@pytest.mark.parametrize(
    "name", ["", "tflite", "cloister", "cloister-outside@1MiB", "cloister-inside@", "cloister-inside@much"]
)
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="expected"):
        engines.engine_named(name)


def test_a_near_name_is_proposed():
    with pytest.raises(UserError) as caught:
        engines.engine_named("openvino_int8")
    assert caught.value.hint == "did you mean `openvino-int8`?"


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "`openvino` cannot be imported" in engines.engine_named("openvino-int8").why_missing


def test_ours_and_torch_are_always_there():
    assert all(engines.engine_named(name).why_missing is None for name in [*OWN, "torch-eager-fp32"])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return engines.Case(models.load("vgg7"), tmp_path_factory.mktemp("case"))


@pytest.mark.parametrize("name", [*(peer.name for peer in engines.PEERS if "compile" not in peer.name), *OWN])
def test_an_engine_gives_the_models_answers_or_says_why_not(case, name):
    """None of others' engines is needed for the tests; where one is installed, it is not compared with broken."""
    engine = engines.engine_named(name)
    if engine.why_missing:
        assert "cannot be imported" in engine.why_missing
        assert isinstance(engine, engines.PeerEngine)
        return
    for batch in (1, 3):
        with contextlib.ExitStack() as stack:
            prepared = engine.prepare(case, batch, stack)
            assert compare._agreement(case, batch, prepared) > (0.97 if engine.bits == 8 else 0.9999)
    assert engine.version.split()[1]


def test_a_budget_that_is_too_small_is_told(case):
    with contextlib.ExitStack() as stack, pytest.raises(PlanError):
        engines.engine_named("cloister-inside@1KiB").prepare(case, 1, stack)


def test_silence_holds_for_what_writes_past_python(capfd):
    import os

    with engines.silent():
        os.write(1, b"noise\n")
        os.write(2, b"noise\n")
    os.write(1, b"after\n")
    assert capfd.readouterr() == ("after\n", "")


# --- Models ---


@pytest.mark.parametrize(("name", "n_parameters"), [("mobilenet_v2", 3_504_872), ("resnet18", 11_689_512)])
def test_large_models_are_those_of_their_papers(name, n_parameters):
    target = models.load(name)
    assert sum(parameter.numel() for parameter in target.model.parameters()) == n_parameters
    with torch.no_grad():
        logits = target.model(torch.from_numpy(models.images(target.input_shape, 2)))
    assert logits.shape == (2, 1000)
    assert np.isfinite(logits.numpy()).all()


def test_an_unknown_model_is_refused():
    with pytest.raises(TargetError, match="resnet18"):
        models.load("resnet19")


def test_models_are_the_same_each_time():
    one, other = (models.load("resnet20").model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["bn1.running_mean"].abs().sum() > 0  # they are warmed up
