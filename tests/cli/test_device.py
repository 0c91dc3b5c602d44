"""A device that only runs bundles: numpy, msgspec, click and rich are all that it needs."""

import subprocess
import sys

import numpy as np
import pytest

import cloister

#: The last three come with rich.
ENOUGH = ("cloister", "numpy", "msgspec", "click", "rich", "markdown_it", "mdurl", "pygments")
DEVICE = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {ENOUGH}:
            raise ModuleNotFoundError(f"No module named {{top!r}}", name=top)
sys.meta_path.insert(0, Absent())
from cloister.cli import main
sys.exit(main(sys.argv[1:]))
"""


def on_device(*args):
    words = [sys.executable, "-c", DEVICE, *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def npz(tmp_path_factory):
    data, path = cloister.load_dataset("digits"), tmp_path_factory.mktemp("data") / "digits.npz"
    parts = {name: getattr(data, name)[:64] for name in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(path, **parts)
    return path


@pytest.mark.parametrize(
    "args",
    [
        ["run", "{bundle}", "--data", "{npz}"],
        ["run", "{bundle}", "--input", "{folder}/x.npy", "-o", "{folder}/outputs.npy"],
        ["inspect", "{bundle}"],
        ["keys", "show"],
        ["keys", "export", "{folder}/new.pub"],
        ["doctor"],
        ["emulator", "status"],
    ],
    ids=" ".join,
)
def test_it_can(args, bundle, npz, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8), np.float32))
    done = on_device(*(word.format(bundle=bundle, npz=npz, folder=tmp_path) for word in args))
    assert (done.returncode, "error" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize(
    ("args", "package"),
    [
        (["protect", "zoo:vgg7", "--data", "{npz}"], "torch"),
        (["run", "{bundle}", "--data", "digits"], "sklearn"),
        (["demo"], "torch"),
    ],
)
def test_what_it_cannot_is_named(args, package, bundle, npz):
    done = on_device(*(word.format(bundle=bundle, npz=npz) for word in args))
    assert done.returncode == 2
    assert done.stderr.startswith(f"cloister: error: this needs {package}, which is not installed\n\nhint: ")


def test_a_module_of_cloister_that_is_missing_is_a_fault(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "cloister.enclave.doctor", None)
    outcome = call("doctor")
    assert outcome.code == 3
    assert "unexpected ModuleNotFoundError" in outcome.err
