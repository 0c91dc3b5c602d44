"""How the tests of the command line call it, and one small bundle for all of them."""

import dataclasses
import json

import pytest

from cloister.cli import main


@dataclasses.dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def document(self):
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _plain(monkeypatch, tmp_path):
    """A fixed width and no settings from outside; files land in a folder of the test's own."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("CLOISTER_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call(capsys):
    """Call the command line in this process."""

    def run(*args):
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """vgg7 for digits with random weights, its last three layers inside."""
    path = tmp_path_factory.mktemp("bundle") / "vgg7.cloister"
    args = ["--data", "digits", "--inside", "last:3", "-o", str(path)]
    assert main(["protect", "zoo:vgg7", *args]) == 0
    return path


@pytest.fixture(scope="session")
def plain_bundle(tmp_path_factory):
    """The same with nothing inside."""
    path = tmp_path_factory.mktemp("bundle") / "plain.cloister"
    args = ["--data", "digits", "--inside", "none", "-o", str(path)]
    assert main(["protect", "zoo:vgg7", *args]) == 0
    return path
