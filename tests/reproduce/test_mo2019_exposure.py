"""The reproduction from data to document: a small real run, and its order, resumption and refusals."""

import importlib.util

import msgspec
import pytest
import torch

from cloister import zoo
from cloister.errors import DataError, UserError
from cloister.exposure.network import Network
from cloister.reproduce import mo2019_exposure as module
from cloister.reproduce.mo2019_exposure import ExposureDocument, reproduce
from tests.reproduce import cases

SMALL = {"sets": ["cifar10"], "n_samples": 20, "n_seeds": 2, "precision": "float32", "epochs": {"cifar10": 1}}
UNITS = 3 * (2 * 8 + 2 * 8 + 8)  # three fits: two seeds; two controls of the first; reversed widths


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    cases.write_datasets(folder)
    return folder


class Interrupting:
    """Progress that interrupts where a text comes up."""

    def __init__(self, at=None):
        self.at, self.texts = at, []

    def update(self, done, total, text):
        self.texts.append(text)
        if self.at and self.at in text:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A run that is interrupted in its second base and in a control, and ended; with what each told."""
    state = tmp_path_factory.mktemp("state")
    told = []
    for at in ("seed 1, base, epoch 3/", "controls, features.7, unseen-base"):
        told.append(Interrupting(at))
        with pytest.raises(KeyboardInterrupt):
            reproduce(data, **SMALL, state=state, progress=told[-1])
    told.append(Interrupting())
    document = reproduce(data, **SMALL, state=state, progress=told[-1])
    return document, state, [one.texts for one in told]


def test_small_run(runs):
    document, *_ = runs
    (one,), (other,) = document.sets, document.reversed
    assert (one.data, one.widths, one.epochs, other.widths) == ("cifar10", "paper", 1, "reversed")
    assert [base.seed for base in one.bases] == [0, 1]
    assert [base.unseen is not None for base in one.bases] == [True, False]
    assert [layer.name for layer in one.layers] == [layer.name for layer in other.layers] == list(cases.NAMES)
    assert [layer.n_parameters for layer in other.layers] == [896, 9248, 9248, 4624, 2320, 2320, 16 * 64 + 64, 650]
    assert all(layer.reinitialised and layer.unseen_base for layer in one.layers)
    assert not any(layer.reinitialised or layer.unseen_base for layer in other.layers)
    assert one.layers[0].measured.by_loss.p.low is not None  # an interval over seeds
    assert other.described_order is None
    assert {one.data for one in document.statements} == {"cifar10"}
    assert (document.n_samples, document.n_seeds, document.n_controlled) == (20, 2, 1)
    assert document.seconds == pytest.approx(sum(base.seconds for base in (*one.bases, *other.bases)))
    assert document == msgspec.json.decode(msgspec.json.encode(document), type=ExposureDocument)


def test_main_measures_come_first_then_controls_then_reversed_widths(runs):
    _, _, texts = runs
    parts = dict.fromkeys(text.partition(": ")[2].partition(", features")[0] for one in texts for text in one)
    places = {part: place for place, part in enumerate(p for p in parts if "base" not in p and "classifier" not in p)}
    assert list(places) == [
        "cifar10, seed 0",
        "cifar10, seed 1",
        "cifar10, seed 0, controls",
        "cifar10, seed 0, widths reversed",
    ]


def test_interrupted_run_redoes_nothing_that_was_finished(runs):
    _, state, (first, second, third) = runs
    assert not any("seed 0, base" in text for text in (*second, *third))  # a finished training
    assert not any("seed 1, base, epoch 1/" in text for text in second)  # goes on after the last epoch
    tuned = [text for text in (*first, *second, *third) if any(fit in text for fit in ("M_p", "M_r", "replaced"))]
    assert len(tuned) == UNITS + 1  # one fine-tuning was broken off at its end, before it was kept
    assert len([path for path in state.glob("*.json") if not path.name.startswith("base-")]) == UNITS
    assert len(list(state.glob("base-*.safetensors"))) == 3


def test_finished_run_is_the_same_again_without_work(runs, data):
    document, state, _ = runs
    told = Interrupting()
    assert reproduce(data, **SMALL, state=state, progress=told) == document
    assert told.texts == []


def test_fewer_seeds_and_no_controls_from_the_same_state(runs, data):
    document, state, _ = runs
    told = Interrupting()
    one = reproduce(data, **SMALL | {"n_seeds": 1}, n_controlled=0, state=state, progress=told)
    assert told.texts == []
    assert one.sets[0].bases[0].exposures == document.sets[0].bases[0].exposures
    assert (one.reversed, one.sets[0].layers[0].unseen_base) == ((), None)


def test_state_that_cannot_be_read_is_done_again(runs, data, tmp_path):
    document, state, _ = runs
    for path in state.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for damaged in (next(tmp_path.glob("base-*.safetensors")), next(tmp_path.glob("base-*.json"))):
        damaged.write_bytes(b"damaged")
    again = reproduce(data, **SMALL, state=tmp_path)
    assert again.statements == document.statements
    assert again.sets[0].layers == document.sets[0].layers


# --- without training ---


@pytest.fixture
def made_up(monkeypatch):
    """What is measured, without doing it: made-up exposures, different for each seed."""
    calls = []

    def measure(target, *, seed, controls, epochs, **_):
        calls.append((target.name, seed, bool(controls), epochs))
        values = [value + seed / 100 for value in cases.DESCRIBED]
        fields = {"anew": [0.1] * 8, "unseen": [1.0] * 8} if controls else {}
        return cases.exposure(values, epochs=epochs, warnings=["strange", "a single repeat has no interval"], **fields)

    def base(self, job, progress):
        training = type("Training", (), {"seconds": 1.0})
        return module._untrained(self.datasets[job.data], job), training

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module, "with_members", lambda target, _: target)
    monkeypatch.setattr(module._Work, "_base", base)
    return calls


def test_seed_by_seed_all_data_sets(made_up, data):
    document = reproduce(data, sets=["mnist", "cifar10"], n_samples=20, n_seeds=2)
    epochs = {"mnist": 20, "cifar10": 60}
    paper = [("vgg7", seed, False, epochs[name]) for seed in (0, 1) for name in ("mnist", "cifar10")]
    controls = [("vgg7", 0, True, epochs[name]) for name in ("mnist", "cifar10")]
    assert made_up == [*paper, *controls, ("vgg7, widths reversed", 0, False, 60)]
    assert [one.data for one in document.sets] == ["mnist", "cifar10"]
    assert [(pair.one, pair.other) for pair in document.agreement] == [("mnist", "cifar10")]
    last = document.sets[0].layers[5].measured.by_loss.exposure
    assert last.mean == pytest.approx(0.635)
    assert document.sets[0].bases[1].exposures[5] == pytest.approx(0.64)
    assert document.sets[0].bases[1].memorisations[5] == pytest.approx(0.16)
    assert document.sets[0].memorisation_ranking.layers[0] == "features.12"
    assert document.memorisation_agreement[0].correlation.rho == pytest.approx(1)


def test_warnings_say_where_and_leave_out_that_of_single_repeats(made_up, data):
    document = reproduce(data, sets=["cifar10"], n_samples=20, n_seeds=2)
    assert document.warnings == (
        "cifar10, seed 0: strange", "cifar10, seed 1: strange", "cifar10, seed 0, widths reversed: strange"
    )  # fmt: skip


def test_findings_are_from_seeds_with_controls(made_up, data):
    document = reproduce(data, sets=["cifar10"], n_samples=20, n_seeds=2)
    assert any("a high value is no sign of memory: median 1.00" in text for text in document.sets[0].findings)
    document = reproduce(data, sets=["cifar10"], n_samples=20, n_seeds=2, n_controlled=0)
    assert not any("no sign of memory" in text for text in document.sets[0].findings)


def test_figure_is_the_same_again(made_up, data):
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("needs matplotlib")
    from cloister.reproduce.mo2019_figure import draw

    document = reproduce(data, sets=["mnist", "cifar10"], n_samples=20, n_seeds=2)
    again = msgspec.json.decode(msgspec.json.encode(document), type=ExposureDocument)
    assert draw(document) == draw(again)
    assert draw(document).lstrip().startswith(b"<?xml")
    only = msgspec.structs.replace(document, sets=document.sets[:1], reversed=())
    assert draw(only) != draw(document)


def test_reversed_widths_have_the_layers_of_vgg7():
    shape = (3, 32, 32)
    straight, back = zoo.build("vgg7", input_shape=shape, n_classes=10), module._reversed(shape, 10, 0)
    assert [one.name for one in Network(back, shape).groups()] == [
        one.name for one in Network(straight, shape).groups()
    ]
    assert back(torch.zeros(2, *shape)).shape == (2, 10)
    assert torch.equal(back.features[0].weight, module._reversed(shape, 10, 0).features[0].weight)
    assert not torch.equal(back.features[0].weight, module._reversed(shape, 10, 1).features[0].weight)


# --- refusals ---


def test_missing_data_says_what_is_expected(monkeypatch, tmp_path):
    monkeypatch.delenv("CLOISTER_DATA", raising=False)
    with pytest.raises(DataError, match=r"`MNIST`, `FashionMNIST`, `cifar10\.npz`") as caught:
        reproduce(None)
    assert "CLOISTER_DATA" in caught.value.hint
    with pytest.raises(DataError, match="MNIST"):
        reproduce(tmp_path)


def test_data_may_come_from_the_environment(made_up, data, monkeypatch):
    monkeypatch.setenv("CLOISTER_DATA", str(data))
    assert reproduce(None, sets=["mnist"], n_samples=20, n_seeds=1).sets[0].data == "mnist"


def test_too_few_images_are_refused_before_work(made_up, data):
    with pytest.raises(DataError, match=r"expected 93 training images .* but it has 90") as caught:
        reproduce(data, sets=["mnist", "cifar10"], n_samples=31)
    assert "at most 30" in caught.value.hint
    assert made_up == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sets": ["mnist", "cifar100"]}, "cifar100"),
        ({"sets": []}, "none"),
        ({"n_samples": 1}, "at least 2 samples"),
        ({"n_seeds": 0}, "at least 1 seed"),
        ({"n_seeds": 1, "n_controlled": 2}, "controls of 0 to 1 seeds, but got 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message, data):
    with pytest.raises(UserError, match=message):
        reproduce(data, **settings)


def test_state_that_is_a_file_is_refused(data, tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(UserError, match="state"):
        reproduce(data, **SMALL, state=tmp_path / "state")
