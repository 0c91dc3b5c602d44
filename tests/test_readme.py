"""The README's commands and code run as they stand."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from cloister.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands_with(words):
    """The arguments of each command of the one block that has these words."""
    (text,) = [block for block in blocks("") if words in block]
    for line in text.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "cloister"
        yield arguments


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small data set under the name that the README uses."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (72, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(72) % 10
    np.savez(tmp_path / "cifar10.npz", x_train=images[:64], y_train=labels[:64], x_test=images[64:], y_test=labels[64:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(arguments):
    arguments[arguments.index("--epochs") + 1] = "1"
    assert main(arguments) == 0


def test_commands_and_code(folder, capsys):
    first, *others = commands_with("cloister train")
    train(first)
    for arguments in others:
        assert main(arguments) == 0, arguments
    (folder / "vgg16.cloister").unlink()
    (code,) = blocks("python")
    exec(code, {})  # noqa: S102
    assert int(capsys.readouterr().out.split()[-1]) <= 1 << 20


@pytest.mark.emulator
def test_commands_of_the_emulator(folder):
    first, *_ = commands_with("cloister train")
    train(first)
    try:
        for arguments in commands_with("cloister emulator up"):
            assert main(arguments) == 0, arguments
    finally:
        main(["emulator", "down"])


def test_local_links_lead_somewhere():
    names = ("README.md", "ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md")
    for path in [*(ROOT / name for name in names), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert link.startswith("http") or (path.parent / link).exists(), (path, link)
