"""The figure of an exposure."""

import importlib.util
import sys

import msgspec
import pytest

from cloister import Exposure, measure
from cloister.errors import UserError
from cloister.exposure.figure import draw
from tests.exposure import cases


@pytest.fixture(scope="module")
def document():
    settings = {"epochs": 1, "repeats": 2, "batch_size": 20, "precision": "float32", "controls": ("reinitialised",)}
    return measure(cases.target(), **settings)


def test_figure_is_the_same_again_or_refused(document):
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(UserError, match="matplotlib"):
            draw(document)
        return
    again = msgspec.json.decode(msgspec.json.encode(document), type=Exposure)
    assert draw(document) == draw(again)
    assert draw(document).lstrip().startswith(b"<?xml")


def test_figure_without_matplotlib_is_refused(document, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="matplotlib"):
        draw(document)
