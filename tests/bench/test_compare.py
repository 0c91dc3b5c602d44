"""What is measured side by side, and what becomes of what cannot be measured. No test looks at a time."""

import contextlib
import dataclasses
import importlib.util
import sys

import msgspec
import numpy as np
import pytest

from cloister.bench import compare, engines, figure
from cloister.errors import TargetError, UserError

PLAIN = ("cloister-outside", "cloister-inside")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fake(engines.PeerEngine):
    """Another's engine that answers what it is told to."""

    answer: object = None
    modules: tuple = ()
    maker: object = None

    @property
    def version(self):
        return "fake 1"

    def prepare(self, case, batch, stack):
        if isinstance(self.answer, Exception):
            raise self.answer
        return engines.Prepared(np.ascontiguousarray, lambda x: self.answer(case, x))


def right(case, x):
    import torch

    with torch.no_grad():
        return case.module(torch.from_numpy(x)).numpy()


def constant(case, x):
    return np.tile(right(case, x[:1] * 0), (len(x), 1))


@pytest.fixture
def add_peers(monkeypatch):
    def add(**answers):
        peers = [Fake(name=name, bits=32, answer=answer) for name, answer in answers.items()]
        monkeypatch.setattr(engines, "PEERS", (*engines.PEERS, *peers))

    return add


@pytest.fixture(scope="module")
def document():
    """One small but real run of ours."""
    names = ["cloister-inside", "cloister-inside@64KiB", "cloister-inside[last:2]", "cloister-inside@1KiB"]
    return compare.compare(["vgg7"], names, against=["cloister-outside"], batches=(1, 2), rounds=2)


def test_each_engine_has_a_row_for_each_batch(document):
    expected = ["cloister-inside", "cloister-inside@64KiB", "cloister-inside[last:2]"]
    for batch in (1, 2):
        assert [row.engine for row in document.rows if row.batch == batch] == expected
    for row in document.rows:
        assert (row.model, row.against, row.bits) == ("vgg7", "cloister-outside", 8)
        assert 0 < row.ratio_low <= row.ratio <= row.ratio_high
        assert row.agreement > 0.99


def test_rows_say_what_was_varied(document):
    rows = {row.engine: row for row in document.rows}
    streamed, tail = rows["cloister-inside@64KiB"], rows["cloister-inside[last:2]"]
    assert streamed.budget_bytes == 64 << 10 >= streamed.inside_peak_bytes > 0
    assert rows["cloister-inside"].inside_peak_bytes > streamed.inside_peak_bytes
    assert (tail.inside, tail.n_inside) == ("last:2", 2)
    assert rows["cloister-inside"].n_inside == 8
    assert len({row.weight_bytes for row in rows.values()}) == 1


def test_what_does_not_fit_is_listed_with_its_reason(document):
    assert {(one.engine, one.batch) for one in document.missing} == {("cloister-inside@1KiB", n) for n in (1, 2)}
    assert all("budget" in one.reason for one in document.missing)


def test_document_has_no_time_and_says_where_it_is_from(document):
    data = msgspec.to_builtins(document)
    assert set(data) == {
        *("schema", "enclave", "isolation", "processor", "threads", "rounds", "versions", "rows", "missing")
    }
    assert {"model", "engine", "against", "ratio", "ratio_low", "ratio_high"} <= set(data["rows"][0])
    assert not [key for key in data["rows"][0] if "second" in key or "ms" in key.split("_")]
    assert "not hardware" in data["isolation"]
    assert data["versions"]["cloister-outside"].startswith("cloister ")


def run(names, against, **options):
    return compare.compare(["vgg7"], names, against=against, rounds=1, **options)


def test_a_broken_engine_is_not_compared_with(add_peers):
    add_peers(right=right, constant=constant, nan=lambda case, x: right(case, x) * np.nan, shape=lambda case, x: x)
    found = run(["right", "constant", "nan", "shape"], ["cloister-outside", "fastest"])
    assert {(row.engine, row.against) for row in found.rows} == {
        ("right", "cloister-outside"),
        ("cloister-outside", "right"),
    }
    assert {one.engine for one in found.missing} == {"constant", "nan", "shape"}
    assert all("correlate" in one.reason for one in found.missing)


def test_an_engine_that_fails_is_listed(add_peers):
    add_peers(failing=RuntimeError("no such operator\nand more"))
    found = run(["failing", "cloister-inside"], ["cloister-outside"])
    assert [(one.engine, one.reason) for one in found.missing] == [("failing", "RuntimeError: no such operator")]
    assert [row.engine for row in found.rows] == ["cloister-inside"]


def test_nothing_is_the_fastest_where_nothing_else_was_measured():
    found = run(["cloister-inside"], ["fastest"])
    assert found.rows == ()
    assert [(one.engine, one.reason) for one in found.missing] == [("fastest", "no engine of others was measured")]


def test_a_failure_of_ours_is_no_missing_row(monkeypatch):
    def fail(self, case, batch, stack):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(engines.OwnEngine, "prepare", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(["cloister-inside"], ["cloister-outside"])


def test_comparing_with_what_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(engines.PeerEngine, "why_missing", property(lambda self: "`it` cannot be imported"))
    with pytest.raises(UserError, match=r"openvino-int8.*cannot be imported") as caught:
        run(["cloister-inside"], ["openvino-int8"])
    assert "cloister[bench]" in caught.value.hint
    found = run(["openvino-int8", "cloister-inside"], ["cloister-outside"])
    assert [(one.model, one.engine) for one in found.missing] == [(None, "openvino-int8")]


def test_unknown_models_and_engines_are_refused_before_work():
    with pytest.raises(TargetError):
        compare.compare(["vgg8"], PLAIN, against=[])
    with pytest.raises(UserError):
        run(["cloister-insid"], [])
    with pytest.raises(UserError):
        run(PLAIN, ["quickest"])


def test_threads_are_as_before(document):
    import torch

    torch.set_num_threads(2)
    try:
        with contextlib.suppress(UserError), compare._one_thread():
            assert torch.get_num_threads() == 1
            raise UserError("")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def has_matplotlib():
    return importlib.util.find_spec("matplotlib") is not None


def test_figure(document):
    if not has_matplotlib():
        with pytest.raises(UserError, match="matplotlib"):
            figure.draw(document)
        return
    drawn = figure.draw(document)
    assert drawn == figure.draw(document)
    assert drawn.count(b'id="axes_') == 3  # the model; layers inside; images in a run
    with pytest.raises(UserError, match="nothing"):
        figure.draw(msgspec.structs.replace(document, rows=()))


def test_a_figure_without_matplotlib_is_refused_before_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="matplotlib"):
        figure.check_figure()
