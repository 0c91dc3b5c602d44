"""The demo, from end to end: what it claims has to hold."""

import json

import msgspec
import pytest

from cloister.cli import main
from cloister.demo import BUDGET_BYTES, run_demo
from cloister.errors import OutputExists


class Steps:
    """A progress that remembers."""

    def __init__(self):
        self.seen = []

    def update(self, done, total, text):
        assert 0 <= done <= total
        self.seen.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def result(folder):
    return run_demo(folder, progress=Steps())


def test_protected_answers_have_the_same_bits(result):
    assert result.bit_equal
    assert result.agreement.protected_int8 == 1.0
    assert result.accuracy.protected == result.accuracy.int8


def test_model_is_good(result):
    assert result.accuracy.float32 > 0.97
    assert result.accuracy.protected > 0.95
    assert result.agreement.int8_float32 > 0.97


def test_budget_is_small_and_kept(result):
    assert result.budget_bytes == BUDGET_BYTES < result.inside_weight_bytes
    assert 0 < result.inside_peak_bytes <= result.inside_bytes <= result.budget_bytes


def test_layers_are_really_cut_and_streamed(result):
    assert result.n_slices > len(result.inside_layers)
    assert 0 < result.n_streamed <= result.n_slices
    assert result.slices_opened > result.n_slices


def test_crossings_are_the_measured_bytes(result):
    for direction, n_bytes in (("in", result.bytes_in), ("out", result.bytes_out)):
        assert sum(c.n_bytes for c in result.crossings if c.direction == direction) == n_bytes
    assert set(result.inside_layers).isdisjoint(result.outside_layers)


def test_ciphertext_is_no_smaller_than_the_weights(result):
    assert result.sealed_bytes > result.inside_weight_bytes


def test_time_is_a_ratio(result):
    assert 0.1 < result.time_ratio < 1000
    assert "not hardware" in result.isolation


def test_it_does_not_overwrite(result, folder):
    with pytest.raises(OutputExists):
        run_demo(folder)


def test_command_prints_the_result_and_keeps_the_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "kept"
    assert main(["demo", "--seed", "1", "-o", str(out), "-f", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "cloister.demo/1"
    assert document == json.loads((out / "result.json").read_text())
    names = {"model.safetensors", "unprotected.cloister", "protected.cloister", "result.json"}
    assert {path.name for path in out.iterdir()} == names
    assert main(["demo", "-o", str(out)]) == 2


def test_command_shows_tables(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["demo", "-o", str(tmp_path / "kept")]) == 0
    text = capsys.readouterr().out
    for part in (
        "float32, PyTorch",
        "the same bits",
        "peak",
        "times that of nothing inside",
        "An outsider",
        "kept in",
        "Next",
    ):
        assert part in text
    commands = text[text.index("Next") :].splitlines()[1:]
    assert [line.split()[:2] for line in commands] == [
        ["cloister", verb] for verb in ("train", "protect", "run", "inspect")
    ]
    assert max(map(len, text[: text.index("Next")].splitlines())) <= 80


@pytest.mark.parametrize("change", [{"bit_equal": False}, {"inside_peak_bytes": BUDGET_BYTES + 1}])
def test_command_fails_if_a_claim_does_not_hold(result, capsys, monkeypatch, change):
    changed = msgspec.structs.replace(result, **change)
    monkeypatch.setattr("cloister.demo.run_demo", lambda *_, **__: changed)
    assert main(["demo"]) == 3
    captured = capsys.readouterr()
    assert "Accuracy" in captured.out
    assert "cloister: error: the enclave gave other bits" in captured.err
