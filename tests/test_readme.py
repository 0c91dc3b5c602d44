"""The README's commands and code run as they stand."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from cloister.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small data set under the name that the README uses."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (72, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(72) % 10
    np.savez(tmp_path / "cifar10.npz", x_train=images[:64], y_train=labels[:64], x_test=images[64:], y_test=labels[64:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_and_code(folder, capsys):
    (commands,) = [b for b in blocks("") if "cloister protect" in b]
    for line in commands.splitlines():
        arguments = shlex.split(line)
        assert arguments[0] == "cloister"
        if arguments[1] == "train":
            arguments[arguments.index("--epochs") + 1] = "1"
        assert main(arguments[1:]) == 0, line
    (folder / "vgg16.cloister").unlink()
    (code,) = blocks("python")
    exec(code, {})  # noqa: S102
    assert int(capsys.readouterr().out.split()[-1]) <= 1 << 20


def test_local_links_lead_somewhere():
    for text in [README, *((Path(__file__).parent.parent / n).read_text() for n in ("ARCHITECTURE.md", "SECURITY.md"))]:
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("http") or (Path(__file__).parent.parent / link).exists(), link
