"""`cloister reproduce mo2019-exposure`: what it asks for, prints, keeps and refuses."""

import sys

import msgspec
import pytest

from cloister.reproduce import mo2019_exposure as module
from cloister.reproduce.mo2019_exposure import ExposureDocument
from tests.reproduce import cases

COMMAND = ["reproduce", "mo2019-exposure"]


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What `reproduce` is asked for, answered with made-up exposures."""
    calls = []
    cases.write_datasets(tmp_path)
    monkeypatch.setenv("CLOISTER_DATA", str(tmp_path))

    def answer(data, *, state, progress, **settings):
        calls.append({"data": data, "state": state, **settings})
        if state is not None:
            state.mkdir(exist_ok=True)
            for name in ("base-a.safetensors", "base-a.json", "control-b.safetensors", "c.json", "mine.txt"):
                (state / name).write_text("")
        controls = {"anew": [0.12] * 8, "unseen": [1.01] * 8}
        values = [
            None if name == "classifier.2" else value for name, value in zip(cases.NAMES, cases.DESCRIBED, strict=True)
        ]
        found = [
            module._Measured(seed, type("Training", (), {"seconds": 1.0}), one)
            for seed, one in enumerate([cases.exposure(values, **controls), cases.exposure(values)])
        ]
        done = {("mnist", "paper", one.seed): one for one in found} | {("mnist", "reversed", 0): found[0]}
        sets = [module._pooled("mnist", "paper", found), module._pooled("mnist", "reversed", found[:1])]
        return module._document(sets, done, 10, 2, 1)

    monkeypatch.setattr(module, "reproduce", answer)
    return calls


def test_tables_say_what_was_found_beside_the_paper(call, asked, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    outcome = call(*COMMAND)
    assert outcome.code == 0
    row = next(line for line in outcome.out.splitlines() if line.startswith("features.12"))
    assert row.split() == [
        *("features.12", "9,248", "1.000", "0.370", "0.63", "±0.00", "0.63"), *("0.32", "0.63", "0.12", "1.01")
    ]  # fmt: skip
    row = next(line for line in outcome.out.splitlines() if line.startswith("classifier.2"))
    assert "undefined" in row
    at = outcome.out.index("Memorisation of VGG-7 on mnist")
    row = next(line for line in outcome.out[at:].splitlines() if line.startswith("features.12"))
    assert row.split() == ["features.12", "9,248", "0.16", "±0.00", "-0.01", "0.02"]
    for text in (
        "Widths reversed on mnist",
        "the last convolution has 0.63",
        "undefined: classifier.2",
        "unknown",
        "rank correlation of convolutions 1.00 (p 0.0028, 6 layers)",
        "accuracy 100.00 %, 75.00 % on S, T; unseen base 100.00 %, 75.00 %",
        "median 1.01 in a base that never saw the members",
        "the paper splits the whole training set",
    ):
        assert text in outcome.out, text
    assert "nan" not in outcome.out.lower()


def test_documents_and_state(call, asked, tmp_path):
    outcome = call(*COMMAND, "-o", "e.json", "-f", "json")
    assert outcome.code == 0
    written = (tmp_path / "e.json").read_bytes()
    assert msgspec.json.decode(written, type=ExposureDocument).model == "vgg7"
    assert outcome.document == msgspec.json.decode(written)
    assert [path.name for path in (tmp_path / "e.json.resume").iterdir()] == ["mine.txt"]
    call(*COMMAND, "--state", "state")
    assert len(list((tmp_path / "state").iterdir())) == 5
    assert "finished work is taken from there" in call(*COMMAND, "--state", "state").err


def test_what_is_asked_for(call, asked):
    call(*COMMAND)
    call(*COMMAND, "--quick")
    call(*COMMAND, "--quick", "--samples", "50", "--seeds", "4", "--controls", "2", "--only", "cifar10", "--data", "d")
    full, quick, own = asked
    assert (full["n_samples"], full["n_seeds"], full["n_controlled"], full["epochs"]) == (10_000, 3, 1, None)
    assert full["sets"] == ("mnist", "fashion-mnist", "cifar10")
    assert (quick["n_samples"], quick["n_seeds"], quick["n_controlled"]) == (500, 2, 1)
    assert quick["epochs"] == {"mnist": 5, "fashion-mnist": 10, "cifar10": 15}
    assert (own["n_samples"], own["n_seeds"], own["n_controlled"]) == (50, 4, 2)
    assert (own["sets"], str(own["data"])) == (("cifar10",), "d")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--only", "cifar100"], "cifar100"),
        (["--samples", "1"], "1"),
        (["--seeds", "0"], "0"),
        (["--controls", "-1"], "-1"),
        (["--seeds", "1", "--controls", "2"], "controls of 0 to 1 seeds"),
    ],
)
def test_wrong_options_are_refused(call, args, said):
    outcome = call(*COMMAND, *args)
    assert outcome.code == 2
    assert said in outcome.err


def test_without_data_it_says_what_is_expected(call, monkeypatch, tmp_path):
    monkeypatch.delenv("CLOISTER_DATA", raising=False)
    outcome = call(*COMMAND, "--quick")
    assert outcome.code == 2
    assert "`cifar10.npz`" in outcome.err
    assert "hint: name it with --data or CLOISTER_DATA" in outcome.err
    outcome = call(*COMMAND, "--quick", "--data", tmp_path)
    assert outcome.code == 2
    assert "MNIST" in outcome.err


def test_outputs_are_checked_before_work(call, asked, monkeypatch, tmp_path):
    (tmp_path / "there.json").write_text("")
    outcome = call(*COMMAND, "-o", "there.json")
    assert outcome.code == 2
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = call(*COMMAND, "--figure", "e.svg")
    assert outcome.code == 2
    assert "matplotlib" in outcome.err
    assert asked == []


def test_interrupted_command_says_how_to_go_on(call, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "reproduce", interrupted)
    outcome = call(*COMMAND, "--state", "state")
    assert outcome.code == 130
    assert "the same command goes on" in outcome.err
