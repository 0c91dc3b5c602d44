"""A fast start: what runs on a device, or only answers a question, does not import torch."""

import subprocess
import sys

import pytest

PROBE = """
import sys
from cloister.cli import main
code = main(sys.argv[1:])
print("torch" in sys.modules, code, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["measure", "--help"],
        ["protect", "--help"],
        ["inspect", "{bundle}"],
        ["keys", "show"],
        ["keys", "export", "{folder}/new.pub"],
        ["doctor"],
        ["run", "{bundle}", "--data", "digits"],
        ["run", "{bundle}", "--data", "digits", "-o", "{folder}/outputs.npy"],
        ["run", "nothing.cloister", "--data", "digits"],
    ],
    ids=" ".join,
)
def test_no_torch(args, bundle, tmp_path):
    words = [word.format(bundle=bundle, folder=tmp_path) for word in args]
    finished = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True)
    with_torch, code = finished.stderr.splitlines()[-1].split()
    assert with_torch == "False"
    assert code == ("2" if "nothing.cloister" in words else "0")
