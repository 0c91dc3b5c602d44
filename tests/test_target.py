"""Targets load from each kind of spec, checkpoints round-trip, and every refusal says what to do."""

import os
import sys
import zipfile

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cloister import zoo
from cloister.checkpoint import load_weights, read_tensors, write_tensors
from cloister.data import load_dataset, split
from cloister.errors import DataError, OutputExists, TargetError
from cloister.target import Checkpoint, Target, load_checkpoint, load_target, save_checkpoint, with_members

SHAPE = (1, 8, 8)


def small():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))


def checkpoint(**changes):
    fields = {
        "model": "vgg7", "input_shape": SHAPE, "n_classes": 10, "seed": 5, "n_members": 700, "data": "digits",
        "data_sha256": load_dataset("digits").sha256, "n_epochs": 1, "learning_rate": 0.01, "batch_size": 32,
        "precision": "float32", "train_accuracy": 1.0, "test_accuracy": 0.1 + 0.2,
    }  # fmt: skip
    return Checkpoint(**(fields | changes))


@pytest.fixture
def saved(tmp_path):
    """Weights of a seeded vgg7 with their metadata: path and model."""
    model = zoo.build("vgg7", input_shape=SHAPE, n_classes=10, seed=3)
    path = tmp_path / "vgg7.safetensors"
    save_checkpoint(path, model.state_dict(), checkpoint())
    return path, model


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    """Write a module in the working directory and return its name."""
    monkeypatch.chdir(tmp_path)
    names = []

    def write(text):
        names.append(f"user_code_{os.getpid()}_{tmp_path.name}_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(
            "import torch\nimport cloister.target as target\n" + text, encoding="utf-8"
        )
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


# --- Target ---


def test_target_lists_every_problem():
    images = np.zeros((3, 1, 8, 8), np.float64)
    with pytest.raises(TargetError) as caught:
        Target(
            model="net", name="n", input_shape=(0, 8), n_classes=0,
            members=(images, np.zeros(2, int)), nonmembers=(images.astype(np.float32)[:0], np.zeros(0)),
        )  # fmt: skip
    for part in ("nn.Module", "input_shape", "n_classes", "images of `members`", "labels of `nonmembers`"):
        assert part in str(caught.value)


# --- zoo ---


def test_zoo_target_needs_a_shape_and_is_seeded():
    with pytest.raises(TargetError, match="input shape") as caught:
        load_target("zoo:vgg7", n_classes=10)
    assert "--data" in caught.value.hint
    target = load_target("zoo:vgg7", input_shape=SHAPE, n_classes=10, seed=4)
    own = zoo.build("vgg7", input_shape=SHAPE, n_classes=10, seed=4)
    assert (target.name, target.input_shape, target.n_classes) == ("vgg7", SHAPE, 10)
    assert all(map(torch.equal, target.model.parameters(), own.parameters()))


def test_zoo_target_takes_shape_and_classes_from_the_checkpoint(saved):
    path, model = saved
    target = load_target("zoo:vgg7", weights=path)
    assert (target.input_shape, target.n_classes, target.checkpoint) == (SHAPE, 10, checkpoint())
    assert not target.model.training
    assert all(map(torch.equal, target.model.parameters(), model.parameters()))


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("zoo:resnet20", {}, "weights of `zoo:resnet20`, but they are of `vgg7`"),
        ("zoo:vgg7", {"input_shape": (1, 28, 28)}, "input shape"),
        ("zoo:vgg7", {"n_classes": 3}, "number of classes 10, but got 3"),
    ],
)
def test_zoo_target_that_contradicts_the_checkpoint_is_refused(saved, spec, arguments, message):
    with pytest.raises(TargetError, match=message):
        load_target(spec, weights=saved[0], **arguments)


@pytest.mark.parametrize("spec", ["zoo:vgg77", "zoo:", "vgg7", "zoo"])
def test_unknown_spec_is_refused(spec):
    with pytest.raises(TargetError, match="expected"):
        load_target(spec, input_shape=SHAPE, n_classes=10)


# --- package.module:function ---


def test_function_in_the_working_directory_is_called(user_code):
    module = user_code("def net():\n    return torch.nn.Flatten()\n")
    before = list(sys.path)
    target = load_target(f"{module}:net", input_shape=SHAPE)
    assert (target.name, target.input_shape, target.n_classes) == (f"{module}:net", SHAPE, None)
    assert sys.path == before


def test_function_draws_seeded_weights_and_leaves_the_global_generator_alone(user_code):
    module = user_code("def net():\n    return torch.nn.Linear(4, 2)\n")
    before = torch.get_rng_state()
    one, same, other = (load_target(f"{module}:net", input_shape=(4,), seed=seed).model.weight for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_function_may_return_a_target(user_code):
    module = user_code(
        "def net():\n    return target.Target(model=torch.nn.Flatten().train(), name='mine', input_shape=(1, 8, 8))\n"
    )
    target = load_target(f"{module}:net", n_classes=64)
    assert (target.name, target.input_shape, target.n_classes) == ("mine", SHAPE, 64)
    assert not target.model.training
    with pytest.raises(TargetError, match="input shape"):
        load_target(f"{module}:net", input_shape=(3, 8, 8))


def test_function_without_a_shape_is_refused_with_a_hint(user_code):
    module = user_code("def net():\n    return torch.nn.Flatten()\n")
    with pytest.raises(TargetError, match="input shape is not known") as caught:
        load_target(f"{module}:net")
    assert "--input-shape" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def net():\n    x = 1\n    return x / 0\n", r"raised ZeroDivisionError: division by zero, at .*\.py:5"),
        ("def net():\n    return torch.zeros(2).view(3)\n", r"raised RuntimeError: .*\.py:4"),
        ("x = undefined\n", r"raised NameError: .*\.py:3"),
        ("def net(:\n", r"raised SyntaxError: .*line 3"),
        ("import no_such_module_at_all\n", r"raised ModuleNotFoundError: .*\.py:3"),
        ("def net(size):\n    pass\n", "to need no arguments.*'size'"),
        ("def nets():\n    pass\n", "expected a function `net`.*there is none"),
        ("net = 3\n", "but it is a int"),
        ("def net():\n    return 3\n", "nn.Module or a cloister.Target, but got int"),
    ],
)
def test_trouble_in_the_users_code_is_reported(user_code, text, message):
    module = user_code(text)
    with pytest.raises(TargetError, match=message):
        load_target(f"{module}:net", input_shape=SHAPE)


def test_misspelt_function_suggests_the_nearest(user_code):
    module = user_code("def network():\n    pass\n")
    with pytest.raises(TargetError) as caught:
        load_target(f"{module}:netwrok", input_shape=SHAPE)
    assert caught.value.hint == f"did you mean `{module}:network`"


@pytest.mark.parametrize("spec", ["no_such_module_here:net", "no_such_package.module:net"])
def test_missing_module_is_refused_with_a_hint(spec):
    with pytest.raises(TargetError, match="expected a module") as caught:
        load_target(spec)
    assert "run from the folder" in caught.value.hint


@pytest.mark.parametrize("spec", [":", "a:", ":a", "a b:c", "a..b:c", "../a:b"])
def test_malformed_function_spec_is_refused(spec):
    with pytest.raises(TargetError, match=r"package\.module:function"):
        load_target(spec)


# --- .pt2 ---


def export(path, model=None, *inputs):
    inputs = inputs or (torch.zeros(2, *SHAPE),)
    shapes = tuple({0: torch.export.Dim("n")} for _ in inputs)
    torch.export.save(torch.export.export((model or small()).eval(), inputs, dynamic_shapes=shapes), path)
    return str(path)


def test_exported_program_tells_its_input_shape(tmp_path):
    spec = export(tmp_path / "net.pt2")
    target = load_target(spec, n_classes=3)
    assert (target.name, target.input_shape, target.n_classes) == ("net", SHAPE, 3)
    assert target.model.module()(torch.zeros(5, *SHAPE)).shape == (5, 3)
    with pytest.raises(TargetError, match="input shape"):
        load_target(spec, input_shape=(3, 8, 8))


def test_exported_program_with_more_weights_is_refused(tmp_path, saved):
    with pytest.raises(TargetError, match="has its own weights"):
        load_target(export(tmp_path / "net.pt2"), weights=saved[0], n_classes=10)


def test_exported_program_with_two_inputs_is_refused(tmp_path):
    with pytest.raises(TargetError, match="one input"):
        load_target(export(tmp_path / "net.pt2", nn.Bilinear(4, 4, 2), torch.zeros(2, 4), torch.zeros(2, 4)))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no archive"])
def test_exported_program_that_is_none_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "net.pt2").write_bytes(content)
    with pytest.raises(TargetError, match=r"torch\.export\.save"):
        load_target(str(tmp_path / "net.pt2"))


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_exported_program_that_would_run_code_is_refused(tmp_path):
    fired = tmp_path / "fired"
    torch.save((Bomb(fired),), tmp_path / "bomb.pt")
    original, changed = export(tmp_path / "net.pt2"), str(tmp_path / "bad.pt2")
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(changed, "w", zipfile.ZIP_STORED) as archive:
        for name in source.namelist():
            is_sample = name.endswith("sample_inputs/model.pt")
            archive.writestr(name, (tmp_path / "bomb.pt").read_bytes() if is_sample else source.read(name))
    with pytest.raises(TargetError, match="cannot load"):
        load_target(changed)
    assert not fired.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("record", ["data/constants/opaque_obj_0", "data/aotinductor/model/model.so"])
def test_exported_program_with_code_inside_is_refused(tmp_path, record):
    spec = export(tmp_path / "net.pt2")
    with zipfile.ZipFile(spec, "a") as archive:
        archive.writestr(f"net/{record}", b"")
    with pytest.raises(TargetError, match="would run code"):
        load_target(spec)


# --- weights ---


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_torch_files_of_tensors_are_read(tmp_path, user_code, suffix, is_nested):
    module = user_code("def net():\n    return torch.nn.Linear(4, 2)\n")
    state = nn.Linear(4, 2).state_dict()
    torch.save({"state_dict": state, "epoch": 3} if is_nested else state, tmp_path / f"w{suffix}")
    target = load_target(f"{module}:net", weights=tmp_path / f"w{suffix}", input_shape=(4,))
    assert torch.equal(target.model.weight, state["weight"])
    assert target.checkpoint is None


def test_torch_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"weight": Bomb(tmp_path / "fired")}, tmp_path / "w.pt")
    with pytest.raises(TargetError, match="as tensors only"):
        load_checkpoint(tmp_path / "w.pt")
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.zeros(1)}, {"a": torch.zeros(2).to_sparse()}])
def test_torch_file_of_other_things_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(TargetError, match="dense tensors"):
        load_checkpoint(tmp_path / "w.pt")


def test_weights_of_another_kind_or_missing_are_refused(tmp_path):
    for name in ("w.npz", "w.safetensors", "w.pt"):
        with pytest.raises(TargetError, match=r"w\."):
            load_checkpoint(tmp_path / name)


def test_load_weights_lists_every_difference():
    state = small().state_dict()
    state["extra"] = state.pop("0.bias")
    state["2.weight"] = torch.zeros(4, 72)
    state["2.bias"] = torch.tensor([0.0, float("nan"), 0.0])
    with pytest.raises(TargetError) as caught:
        load_weights(small(), state, "weights `w`")
    for part in ("missing `0.bias`", "unexpected `extra`", "expected (3, 72), but got (4, 72)", "`2.bias`: not finite"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, "inside the wrapper"),
        (lambda state: state | {"2.bias": torch.zeros(7)}, "number of classes"),
        (lambda state: {"other": torch.zeros(1)}, "another model"),
    ],
)
def test_load_weights_hints_at_the_usual_causes(change, hint):
    with pytest.raises(TargetError) as caught:
        load_weights(small(), change(small().state_dict()), "weights")
    assert hint in caught.value.hint


# --- checkpoints ---


def test_checkpoint_round_trip_is_exact(saved):
    path, model = saved
    state, info = load_checkpoint(path)
    assert info == checkpoint()
    assert list(path.parent.iterdir()) == [path]
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor)


def test_checkpoint_takes_shared_and_strided_tensors(tmp_path):
    tensor = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    write_tensors(tmp_path / "w.safetensors", {"a": tensor, "b": tensor}, "{}")
    read, document = read_tensors(tmp_path / "w.safetensors")
    assert document == "{}"
    assert torch.equal(read["a"], tensor)
    assert torch.equal(read["b"], tensor)


def test_checkpoint_does_not_replace_a_file_unless_forced(saved):
    path, model = saved
    with pytest.raises(OutputExists):
        save_checkpoint(path, model.state_dict(), checkpoint())
    save_checkpoint(path, model.state_dict(), checkpoint(seed=6), force=True)
    assert load_checkpoint(path)[1].seed == 6


def test_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(TargetError, match="cannot write"):
        write_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_safetensors_of_others_have_no_checkpoint(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert load_checkpoint(tmp_path / "w.safetensors")[1] is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "cannot be read"),
        ("{}", "missing required field"),
        (msgspec.json.encode(checkpoint(version=99)).decode(), "version 1 .*but got 99"),
        (msgspec.json.encode(checkpoint()).decode().replace("700", '"many"'), "n_members"),
    ],
)
def test_bad_metadata_is_refused(tmp_path, document, message):
    write_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, document)
    with pytest.raises(TargetError, match=message):
        load_checkpoint(tmp_path / "w.safetensors")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_checkpoint_is_read_or_refused_by_name(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "w.safetensors"
    write_tensors(path, {"a": torch.zeros(3)}, msgspec.json.encode(checkpoint()).decode())
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        load_checkpoint(path)
    except TargetError as error:
        assert "w.safetensors" in str(error)  # noqa: PT017


# --- members ---


def test_with_members_redoes_the_cut(saved):
    data = load_dataset("digits")
    target = with_members(load_target("zoo:vgg7", weights=saved[0]), data)
    inside, outside = split(data.n_train, n_members=700, seed=5)
    assert np.array_equal(target.members[0], data.images(inside))
    assert np.array_equal(target.members[1], data.labels(inside))
    assert np.array_equal(target.nonmembers[0], data.images(outside))
    assert len(target.nonmembers[1]) == data.n_train - 700


def test_with_members_refuses_other_data_and_unknown_training(tmp_path, saved):
    data = load_dataset("digits")
    with pytest.raises(TargetError, match="no"):
        with_members(load_target("zoo:vgg7", input_shape=SHAPE, n_classes=10), data)
    other = checkpoint(data_sha256="0" * 64)
    save_checkpoint(tmp_path / "other.safetensors", saved[1].state_dict(), other)
    with pytest.raises(DataError, match="was trained on `digits`"):
        with_members(load_target("zoo:vgg7", weights=tmp_path / "other.safetensors"), data)
