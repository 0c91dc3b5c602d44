"""`cloister measure` at the command line: what it prints, keeps, refuses, and goes on with."""

import json
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from cloister import Exposure
from cloister.cli import main

QUICK = ["--epochs", "2", "--repeats", "2", "--control", "none"]
MODELS = """
import numpy as np, torch
from torch import nn
from cloister import Target

def pair(seed, n=30):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 5, n)

def overfitted():
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5))
    images, labels = (torch.from_numpy(a) for a in pair(0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return Target(model=model, name="small", input_shape=(6,), n_classes=5, members=pair(0), nonmembers=pair(1))

def without():
    return Target(model=nn.Linear(6, 5), name="small", input_shape=(6,), members=pair(0))
"""


@pytest.fixture
def module(tmp_path, request):
    """A module with targets, in the working folder; its name."""
    name = f"measured_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODELS)
    return name


def test_table_and_documents(call, module, tmp_path):
    outcome = call("measure", f"{module}:overfitted", *QUICK, "-o", "e.json")
    assert outcome.code == 0
    for text in ("Exposure of small, 2 epochs, 2 repeats", "30 members, 30 non-members", "M_p", "exposure", "order"):
        assert text in outcome.out
    document = msgspec.json.decode((tmp_path / "e.json").read_bytes(), type=Exposure)
    assert [layer.name for layer in document.layers] == ["0", "2"]
    assert not (tmp_path / "e.json.resume").exists()
    printed = call("measure", f"{module}:overfitted", *QUICK, "-f", "json").document
    assert printed["schema"] == "cloister.exposure/1"
    assert printed["layers"] == json.loads((tmp_path / "e.json").read_text())["layers"]


def test_undefined_is_said_and_is_no_number(call, module, tmp_path):
    (tmp_path / f"{module}.py").write_text(MODELS.replace("range(100)", "range(0)"))
    outcome = call("measure", f"{module}:overfitted", *QUICK, "--lr", "1e-5")
    assert outcome.code == 0
    assert "cannot be told from 0" in outcome.out
    assert "none: exposure is undefined in every layer" in outcome.out
    assert "nan" not in outcome.out.lower()


def test_groups_from_the_command_line(call, module):
    outcome = call("measure", f"{module}:overfitted", *QUICK, "--group", "both=0.*,2.*", "-f", "json")
    assert [layer["name"] for layer in outcome.document["layers"]] == ["both"]


@pytest.mark.parametrize("group", ["a", "a=", "=0.*"])
def test_groups_that_say_nothing_are_refused(call, module, group):
    outcome = call("measure", f"{module}:overfitted", *QUICK, "--group", group)
    assert outcome.code == 2
    assert "NAME=GLOB" in outcome.err


def test_bad_input_is_named(call, module, tmp_path):
    outcome = call("measure", f"{module}:without", *QUICK)
    assert outcome.code == 2
    assert "no non-members" in outcome.err
    assert "hint:" in outcome.err
    (tmp_path / "there.json").write_text("")
    outcome = call("measure", f"{module}:overfitted", *QUICK, "-o", "there.json")
    assert outcome.code == 2
    assert "exists already" in outcome.err


def test_model_without_weights_has_no_members(call):
    outcome = call("measure", "zoo:vgg7", "--data", "digits", *QUICK)
    assert outcome.code == 2
    assert "expected a checkpoint that tells members" in outcome.err


def test_figure_without_matplotlib_is_refused_before_work(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = call("measure", "no.such:target", *QUICK, "--figure", "e.svg")
    assert outcome.code == 2
    assert "matplotlib" in outcome.err


def test_weights_and_data_tell_the_members(call, tmp_path):
    assert (
        main(["train", "zoo:vgg7", "--data", "digits", "--members", "60", "--epochs", "1", "-o", "w.safetensors"]) == 0
    )
    args = ["--weights", "w.safetensors", "--data", "digits", "--epochs", "1", "--repeats", "1", "--samples", "40"]
    document = call("measure", "zoo:vgg7", *args, "--control", "unseen-base", "-f", "json").document
    assert (document["n_members"], document["n_unseen"]) == (40, 60)
    assert len(document["layers"]) == 8
    assert all(layer["unseen_base"] and not layer["reinitialised"] for layer in document["layers"])


def test_interrupted_command_goes_on(call, module, tmp_path):
    command = [
        "measure",
        f"{module}:overfitted",
        "--epochs",
        "400",
        "--repeats",
        "2",
        "--control",
        "none",
        "-o",
        "e.json",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "cloister", *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    resume = tmp_path / "e.json.resume"
    for _ in range(600):
        if list(resume.glob("*.json")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in talk
    assert list(resume.glob("*.json"))
    assert not (tmp_path / "e.json").exists()


def test_what_else_lies_in_the_state_folder_stays(call, module, tmp_path):
    folder = tmp_path / "e.json.resume"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    assert call("measure", f"{module}:overfitted", *QUICK, "-o", "e.json").code == 0
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_state_folder_that_is_named_stays(call, module, tmp_path):
    args = ["measure", f"{module}:overfitted", *QUICK, "--state", "state", "-f", "json"]
    first, second = call(*args), call(*args)
    assert first.out == second.out
    assert "finished fine-tunings are taken from there" in second.err
    assert len(list((tmp_path / "state").iterdir())) == 12
