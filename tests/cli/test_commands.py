"""The commands on a small bundle: tables, documents, refusals."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import safe_open

from cloister.boards import load_board
from cloister.bundle.keys import fingerprint, parse_public_key
from cloister.cli import ui

FLAT = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return torch.cumsum(torch.erfinv(self.conv2(torch.logcumsumexp(self.conv1(x), 1))), 1).flatten(1)

def odd():
    return Odd()
"""


@pytest.fixture
def models(tmp_path, request):
    """A module with models, in the working folder; its name."""
    name = re.sub(r"\W", "_", request.node.name)
    (tmp_path / f"{name}.py").write_text(FLAT)
    return name


# --- inspect ---


def test_inspect_tells_the_plan(call, bundle):
    outcome = call("inspect", bundle)
    assert outcome.code == 0
    assert outcome.err == ""
    for text in ("features.12", "classifier.2", "inside", "outside", "the last 3 of 8 layers", "AES-256-GCM", "Steps"):
        assert text in outcome.out
    assert "What crosses" in outcome.out


def test_inspect_document_is_the_manifest_with_sizes(call, bundle):
    document = call("inspect", bundle, "-f", "json").document
    manifest = {
        "format",
        "cloister",
        "model",
        "suite",
        "input",
        "output",
        "tensors",
        "steps",
        "plan",
        "parts",
        "slices",
    }
    assert set(document) == manifest | {"schema", "bundle_id", "recipients", "sizes", "crossings"}
    assert document["schema"] == "cloister.inspect/1"
    assert document["sizes"]["file"] == bundle.stat().st_size
    assert set(document["sizes"]) == {"file", "sealed_program", "sealed_slices", "outside"}
    assert [crossing["direction"] for crossing in document["crossings"]] == ["in", "out"]


def test_inspect_of_nothing_inside(call, plain_bundle):
    outcome = call("inspect", plain_bundle)
    assert "nothing is inside" in outcome.out
    assert "sealed  " not in outcome.out
    assert "cipher" not in outcome.out
    assert call("inspect", plain_bundle, "-f", "json").document["crossings"] == []


def test_inspect_of_a_missing_file_is_bad_input(call):
    outcome = call("inspect", "nothing.cloister")
    assert outcome.code == 2
    assert "hint: `cloister protect` makes a bundle" in outcome.err


def test_inspect_of_a_damaged_file_is_an_integrity_failure(call, bundle, tmp_path):
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.cloister").write_bytes(data)
    outcome = call("inspect", "bad.cloister")
    assert outcome.code == 3
    assert "damaged" in outcome.err


@pytest.mark.parametrize("content", [b"", b"hello", bytes(200)])
def test_inspect_of_another_kind_of_file(call, tmp_path, content):
    (tmp_path / "x.cloister").write_bytes(content)
    assert call("inspect", "x.cloister").code == 3


# --- run ---


def test_run_on_labelled_data_tells_accuracy_and_cost(call, bundle):
    outcome = call("run", bundle, "--data", "digits")
    assert outcome.code == 0
    for text in ("360 of digits", "accuracy", "not hardware", "inside memory", "crossed an image", "ms an image"):
        assert text in outcome.out


def test_run_document(call, bundle):
    document = call("run", bundle, "--data", "digits", "--limit", "20", "-f", "json").document
    keys = ["schema", "bundle", "model", "data", "n_images", "accuracy", "output", "stats"]
    assert list(document) == keys
    assert document["schema"] == "cloister.run/1"
    assert document["n_images"] == document["stats"]["images"] == 20
    assert 0 <= document["accuracy"] <= 1
    assert document["stats"]["inside_peak_bytes"] <= document["stats"]["budget_bytes"]


def test_run_gives_the_same_bits_with_nothing_inside(call, bundle, plain_bundle):
    for path, out in ((bundle, "a.npy"), (plain_bundle, "b.npy")):
        assert call("run", path, "--data", "digits", "-o", out).code == 0
    a, b = np.load("a.npy"), np.load("b.npy")
    assert a.shape == (360, 10)
    assert a.dtype == np.float32
    assert a.tobytes() == b.tobytes()


def test_run_with_nothing_inside_says_so(call, plain_bundle):
    assert "nothing is inside" in call("run", plain_bundle, "--data", "digits").out


def test_run_on_arrays(call, bundle):
    np.save("x.npy", np.zeros((5, 1, 8, 8), np.float32))
    outcome = call("run", bundle, "--input", "x.npy", "-o", "y.npy", "-f", "json")
    assert outcome.document["accuracy"] is None
    assert outcome.document["output"] == "y.npy"
    assert np.load("y.npy").shape == (5, 10)


def test_run_on_an_empty_array(call, bundle):
    np.save("x.npy", np.zeros((0, 1, 8, 8), np.float32))
    assert call("run", bundle, "--input", "x.npy", "-o", "y.npy").code == 0
    assert np.load("y.npy").shape == (0, 10)


def test_run_refuses_to_overwrite(call, bundle, tmp_path):
    (tmp_path / "y.npy").write_text("mine")
    outcome = call("run", bundle, "--data", "digits", "-o", "y.npy")
    assert outcome.code == 2
    assert "exists already" in outcome.err
    assert "--force" in outcome.err
    assert (tmp_path / "y.npy").read_text() == "mine"
    assert call("run", bundle, "--data", "digits", "-o", "y.npy", "--force").code == 0
    assert np.load("y.npy").shape == (360, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["y.npy"]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((2, 1, 8, 8)), "expected float32"),
        (np.zeros((2, 1, 9, 8), np.float32), "(2, 1, 9, 8)"),
        (np.full((2, 1, 8, 8), np.nan, np.float32), "finite"),
        (np.array([{}], dtype=object), "expected a .npy file"),
        (np.float32(1), "a single number"),
    ],
)
def test_run_refuses_other_arrays(call, bundle, array, expected):
    np.save("x.npy", array, allow_pickle=True)
    outcome = call("run", bundle, "--input", "x.npy", "-o", "y.npy")
    assert outcome.code == 2
    assert expected in outcome.err


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY", b"no array at all"])
def test_run_refuses_what_is_no_array(call, bundle, tmp_path, content):
    if content is not None:
        (tmp_path / "x.npy").write_bytes(content)
    outcome = call("run", bundle, "--input", "x.npy", "-o", "y.npy")
    assert outcome.code == 2
    assert outcome.err.startswith("cloister: error: x.npy: ")


def test_run_refuses_unwritable_outputs(call, bundle):
    outcome = call("run", bundle, "--data", "digits", "-o", "no/such/folder/y.npy")
    assert outcome.code == 2
    assert "cannot be written" in outcome.err


def test_run_of_another_device_is_refused(call, bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("CLOISTER_STATE", str(tmp_path / "another"))
    outcome = call("run", bundle, "--data", "digits")
    assert outcome.code == 3
    assert "for this device" in outcome.err


# --- protect ---


def test_protect_shows_the_plan_and_the_next_command(call):
    outcome = call("protect", "zoo:vgg7", "--data", "digits", "--inside", "last:2", "-o", "m.cloister")
    assert outcome.code == 0
    for text in ("Plan for vgg7, int8", "the last 2 of 8 layers", "What crosses", "of 8 MiB", "m.cloister"):
        assert text in outcome.out
    assert outcome.out.endswith("Next\n  cloister run m.cloister --data digits\n")
    assert "random weights" in outcome.err


def test_protect_document(call, tmp_path):
    args = ["--data", "digits", "--budget", "none", "--bits", "32", "-f", "json"]
    document = call("protect", "zoo:vgg7", *args).document
    assert list(document) == ["schema", "path", "file_bytes", "model", "suite", "devices", "plan", "crossings"]
    assert document["schema"] == "cloister.protect/1"
    assert document["path"] == "vgg7.cloister"
    assert document["file_bytes"] == (tmp_path / "vgg7.cloister").stat().st_size
    assert document["plan"]["bits"] == 32
    assert document["plan"]["budget_bytes"] is None
    assert all(layer["inside"] for layer in document["plan"]["layers"])


PROTECT = ["protect", "zoo:vgg7", "--data", "digits", "--inside", "last:3", "-o", "b.cloister"]


def test_protect_for_a_board_takes_its_budget_and_tells_what_it_is_worth(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    label = "rpi3 — a demonstration: no secure RAM: the normal world can read the inside; no secure boot: "
    outcome = call(*PROTECT, "--board", "rpi3")
    assert outcome.code == 0
    assert label in outcome.out
    assert "ChaCha20-Poly1305" in outcome.out
    assert label in call("inspect", "b.cloister").out
    ran = call("run", "b.cloister", "--data", "digits", "--limit", "2")
    assert label in ran.out
    assert "process isolation, not hardware" in ran.out
    plan = call("inspect", "b.cloister", "-f", "json").document["plan"]
    assert plan["budget_bytes"] == load_board("rpi3").inside_bytes
    assert plan["board"]["demonstration"] == list(load_board("rpi3").weaknesses)
    stats = call("run", "b.cloister", "--data", "digits", "--limit", "2", "-f", "json").document["stats"]
    assert stats["planned_for"] == plan["board"]
    assert stats["board"] is None


@pytest.mark.parametrize(("budget", "expected"), [("64KiB", 65536), ("none", "all"), (None, "all")])
def test_protect_budget_beside_a_board(call, budget, expected):
    args = ["--budget", budget] if budget else []
    plan = call(*PROTECT, "--board", "qemu-virt", "-f", "json", *args).document["plan"]
    assert plan["budget_bytes"] == (load_board("qemu-virt").inside_bytes if expected == "all" else expected)


def test_protect_with_more_than_the_board_has_is_refused_with_both_numbers(call):
    outcome = call(*PROTECT, "--board", "rpi3", "--budget", "8MiB")
    assert outcome.code == 2
    words = " ".join(outcome.err.split())
    assert f"at most {load_board('rpi3').inside_bytes} bytes for rpi3, but got {8 << 20}" in words


@pytest.mark.parametrize(("board", "says"), [("rpi9", "no board `rpi9`"), ("no.toml", "cannot be read")])
def test_protect_for_an_unknown_board_is_found_before_any_work(call, board, says):
    outcome = call("protect", "zoo:nothing", "--board", board)
    assert outcome.code == 2
    assert says in outcome.err


def test_protect_refuses_to_overwrite_before_any_work(call, tmp_path):
    (tmp_path / "vgg7.cloister").write_text("mine")
    outcome = call("protect", "zoo:nothing", "-o", "vgg7.cloister")
    assert outcome.code == 2
    assert "exists already" in outcome.err
    assert (tmp_path / "vgg7.cloister").read_text() == "mine"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--inside", "clasifier.2"], "nearest names: `classifier.2`"),
        (["--inside", "last:99"], "K from 1 to 8"),
        (["--budget", "2KiB"], "budget"),
        (["--budget", "16KiB", "--slice", "off"], "do not fit whole"),
        (["--weights", "nothing.safetensors"], "nothing.safetensors"),
        (["--for", "nobody.pub"], "nobody.pub"),
    ],
)
def test_protect_refuses_with_a_hint(call, tmp_path, args, expected):
    outcome = call("protect", "zoo:vgg7", "--data", "digits", *args)
    assert outcome.code == 2
    assert expected in outcome.err
    assert not list(tmp_path.glob("*.cloister"))


def test_protect_names_the_nearest_zoo_model(call):
    outcome = call("protect", "zoo:vgg8", "--data", "digits")
    assert outcome.code == 2
    assert "`zoo:vgg7`" in outcome.err


def test_protect_without_images_needs_float32(call, models):
    args = ["protect", f"{models}:plain", "--input-shape", "1,8,8"]
    refused = call(*args)
    assert refused.code == 2
    assert "--bits 32" in refused.err
    assert call(*args, "--bits", "32", "-o", "m.cloister").code == 0


def test_protect_lists_all_unsupported_operations_at_once(call, models):
    args = ["--input-shape", "1,8,8", "--bits", "32"]
    outcome = call("protect", f"{models}:odd", *args)
    assert outcome.code == 2
    for text in ("layer", "operator", "reason", "logcumsumexp", "erfinv", "cumsum", "hint: "):
        assert text in outcome.err


def test_protect_zoo_model_without_data(call):
    args = ["--input-shape", "1x8x8", "--classes", "10", "--bits", "32", "-f", "json"]
    assert call("protect", "zoo:vgg7", *args).document["crossings"][0]["shape"] == [1, 8, 8]


def test_protect_writes_nothing_but_its_words_to_stderr(tmp_path):
    """torch and torchao have notes of their own, also in libraries written in C++."""
    args = ["protect", "zoo:vgg7", "--data", "digits"]
    finished = subprocess.run(
        [sys.executable, "-m", "cloister", *args], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert finished.stderr.splitlines() == [
        "`zoo:vgg7` without --weights has random weights: good for measuring time and memory, no more"
    ]


# --- keys ---


def test_keys_show_and_export_agree(call, tmp_path):
    shown = call("keys", "show", "-f", "json").document
    assert list(shown) == ["schema", "enclave", "fingerprint", "public_key", "path"]
    exported = call("keys", "export", "device.pub", "-f", "json").document
    assert exported == {**shown, "path": "device.pub"}
    key = parse_public_key((tmp_path / "device.pub").read_text())
    assert key.hex() == shown["public_key"]
    assert fingerprint(key) == shown["fingerprint"]
    assert shown["fingerprint"] in call("keys", "show").out


def test_keys_export_refuses_to_overwrite(call, tmp_path):
    assert call("keys", "export", "device.pub").code == 0
    before = (tmp_path / "device.pub").read_text()
    assert call("keys", "export", "device.pub").code == 2
    assert call("keys", "export", "device.pub", "--force").code == 0
    assert (tmp_path / "device.pub").read_text() == before


def test_exported_key_opens_a_bundle_made_for_it(call):
    assert call("keys", "export", "device.pub").code == 0
    args = ["--data", "digits", "--inside", "last:1", "--for", "device.pub", "--for", "local"]
    assert call("protect", "zoo:vgg7", *args, "-o", "m.cloister").code == 0
    assert len(call("inspect", "m.cloister", "-f", "json").document["recipients"]) == 1
    assert call("run", "m.cloister", "--data", "digits", "--limit", "3").code == 0


# --- doctor ---


def test_doctor_finds_this_machine_fit(call):
    outcome = call("doctor")
    assert outcome.code == 0
    assert "local enclave" in outcome.out
    document = call("doctor", "-f", "json").document
    assert list(document) == ["schema", "state", "checks"]
    assert document["state"] in ("ok", "warn")
    assert all(list(check) == ["name", "state", "detail", "fix"] for check in document["checks"])


def test_doctor_exits_with_3_when_a_check_fails(call, monkeypatch):
    from cloister.enclave import doctor

    found = [
        doctor.Check(name="one", state="ok", detail="fine"),
        doctor.Check(name="two", state="warn", detail="weak", fix="strengthen it"),
        doctor.Check(name="three", state="fail", detail="broken", fix="mend it"),
    ]
    monkeypatch.setattr(doctor, "checks", lambda: found)
    outcome = call("doctor")
    assert outcome.code == 3
    assert "mend it" in outcome.out
    assert "strengthen it" in outcome.out
    assert call("doctor", "-f", "json").document["state"] == "fail"
    monkeypatch.setattr(doctor, "checks", lambda: found[:2])
    assert call("doctor").code == 0


# --- train ---

TRAIN = ["train", "zoo:vgg7", "--data", "digits", "--members", "64", "--batch-size", "32", "--epochs", "2"]


def test_train_then_protect_with_its_members(call, tmp_path):
    outcome = call(*TRAIN, "-o", "w.safetensors")
    assert outcome.code == 0
    for text in ("64 members of digits, 2 epochs", "accuracy, members", "accuracy, test", "gap"):
        assert text in outcome.out
    assert outcome.out.endswith("  cloister protect zoo:vgg7 --weights w.safetensors --data digits\n")
    protected = call("protect", "zoo:vgg7", "--weights", "w.safetensors", "--data", "digits", "--inside", "last:1")
    assert protected.code == 0
    assert protected.err == ""
    assert (tmp_path / "w.cloister").exists()


def test_protect_takes_the_same_images_as_the_library(call, tmp_path):
    """Members by the checkpoint's cut, not all training images: the scales in the manifest tell."""
    from cloister import load_dataset, load_target
    from cloister.protection import protect
    from cloister.target import with_members

    assert call(*TRAIN, "-o", "w.safetensors").code == 0
    args = ["--weights", "w.safetensors", "--data", "digits", "--inside", "last:2", "--seed", "5", "-o", "a.cloister"]
    assert call("protect", "zoo:vgg7", *args).code == 0
    target = with_members(load_target("zoo:vgg7", weights=tmp_path / "w.safetensors"), load_dataset("digits"))
    theirs = protect(target, "b.cloister", inside="last:2", budget_bytes=8 << 20, seed=5).manifest
    document = call("inspect", "a.cloister", "-f", "json").document
    assert [tensor["scale"] for tensor in document["tensors"]] == [tensor.scale for tensor in theirs.tensors]


def test_protect_with_other_data_than_the_weights_says_so(call):
    assert call(*TRAIN, "-o", "w.safetensors").code == 0
    x, y = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 10
    np.savez("other.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    outcome = call("protect", "zoo:vgg7", "--weights", "w.safetensors", "--data", "other.npz")
    assert outcome.code == 0
    assert "trained on other data than `other`" in outcome.err


def test_train_document(call):
    document = call(*TRAIN, "-f", "json").document
    assert document["schema"] == "cloister.train/1"
    assert document["path"] == "vgg7.safetensors"
    assert document["generalization_gap"] == document["train_accuracy"] - document["test_accuracy"]
    assert call(*TRAIN).code == 2  # the weights are there


def test_train_goes_on_where_it_was_interrupted(call, tmp_path):
    args = [*TRAIN[:-1], "100000", "-o", "w.safetensors"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cloister", *args], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    resume = tmp_path / "w.safetensors.resume"
    for _ in range(1200):
        if resume.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert err.endswith("cloister: interrupted\n")
    with safe_open(resume, "numpy") as file:
        settings = json.loads(next(iter(file.metadata().values())))
    assert settings["n_epochs_done"] >= 1
    outcome = call(*TRAIN, "-o", "w.safetensors")  # fewer epochs: other settings
    assert outcome.code == 2
    assert "going on" in outcome.err
    assert call(*TRAIN, "-o", "w.safetensors", "--force").code == 0


def test_train_refuses_bad_input(call):
    assert "zoo:vgg7" in call("train", "zoo:vgg8", "--data", "digits").err
    assert call("train", "zoo:vgg7", "--data", "nothing").code == 2
    assert call(*TRAIN, "-o", "w.bin").code == 2
    assert call(*TRAIN[:4], "--members", "100000").code == 2


def test_progress_shows_the_time_left(call, monkeypatch):
    monkeypatch.setattr(ui, "_LOG_EVERY_S", 0)
    err = call(*TRAIN).err
    assert re.search(r"^epoch 1/2, loss \d+\.\d+: \d of 4, about \d+ s left$", err, re.MULTILINE)
