"""Which layers a request means."""

import pytest

from cloister.errors import PlanError
from cloister.planning.select import select_layers

NAMES = ["features.0", "features.3", "features.6", "classifier.0", "classifier.2"]
FOLDED = {"features.1": "features.0"}


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("none", []),
        ("all", NAMES),
        ("last:1", NAMES[-1:]),
        ("last:3", NAMES[-3:]),
        ("classifier.*", NAMES[3:]),
        ("classifier.2, features.0", ["features.0", "classifier.2"]),
        ("features.1", ["features.0"]),
        ("*", NAMES),
    ],
)
def test_requests(request_text, expected):
    assert list(select_layers(NAMES, request_text, FOLDED)) == expected


def test_every_choice_has_a_reason():
    assert select_layers(NAMES, "last:2", {})["classifier.0"] == "asked for: the last 2 of 5 layers"
    assert "part of this layer: features.1" in select_layers(NAMES, "features.1", FOLDED)["features.0"]


def test_unknown_layer_gets_the_nearest_names():
    with pytest.raises(PlanError, match=r"`clasifier\.0`") as caught:
        select_layers(NAMES, "clasifier.0,features.0", {})
    assert "nearest names" in caught.value.hint
    assert "`classifier.0`" in caught.value.hint


@pytest.mark.parametrize("request_text", ["last:0", "last:6", "last:x", "last:", "last:-1", ""])
def test_bad_requests_are_refused(request_text):
    with pytest.raises(PlanError):
        select_layers(NAMES, request_text, {})
