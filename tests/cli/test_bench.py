"""`cloister bench` and `cloister reproduce`: what may be asked for, and what is printed."""

import msgspec
import pytest

from cloister.bench import compare
from cloister.reproduce import yang2024_cost


def test_table_and_files(call, tmp_path):
    """One real run of a small model in engines that are always there."""
    out = tmp_path / "bench.json"
    asked = ["bench", "vgg7", "--engine", "cloister-inside", "--engine", "torch-eager-fp32", "--rounds", "2"]
    outcome = call(*asked, "-o", out, "-f", "json")
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert document == msgspec.json.decode(out.read_bytes())
    found = {(row["model"], row["engine"], row["against"]) for row in document["rows"]}
    against_ours = {("vgg7", name, "cloister-outside") for name in ("cloister-inside", "torch-eager-fp32")}
    against_fastest = {("vgg7", name, "torch-eager-fp32") for name in ("cloister-inside", "cloister-outside")}
    assert found == against_ours | against_fastest
    assert all(row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in document["rows"])


@pytest.fixture
def asked(monkeypatch):
    """What `compare` is asked for, with an empty answer."""
    calls = []

    def answer(model_names, engine_names, *, against, batches=(1,), rounds, progress=None):
        calls.append((list(model_names), list(engine_names), list(against), list(batches)))
        missing = [compare.NotMeasured(model=None, engine="openvino-int8", batch=None, reason="not there")]
        return compare.BenchDocument(
            isolation="none", processor="p", rounds=rounds, versions={}, rows=(), missing=tuple(missing)
        )

    monkeypatch.setattr(compare, "compare", answer)
    return calls


def test_everything_is_measured_by_default(call, asked):
    outcome = call("bench")
    assert outcome.code == 0
    ((models, engines, against, batches),) = asked
    assert models == ["alexnet", "resnet20", "vgg7", "vgg11", "vgg16"]
    assert set(engines) == {
        *("torch-eager-fp32", "torch-compile-fp32", "onnxruntime-fp32", "onnxruntime-int8"),
        *("executorch-xnnpack-int8", "openvino-int8", "cloister-outside", "cloister-outside-fp32", "cloister-inside"),
        *("cloister-inside-fp32", "cloister-inside@1MiB", "cloister-inside@256KiB"),
    }
    assert (against, batches) == (["cloister-outside", "fastest"], [1])


def test_what_is_named_is_measured(call, asked):
    call("bench", "vgg7", "--engine", "openvino-int8", "--against", "cloister-inside")
    call("bench", "vgg7", "--engine", "openvino-int8", "--budget", "1MiB", "--inside", "last:3", "--batch", "8")
    assert [engines for _, engines, _, _ in asked] == [
        ["openvino-int8"],
        ["openvino-int8", "cloister-inside@1MiB", "cloister-inside[last:3]"],
    ]
    assert asked[0][2] == ["cloister-inside"]
    assert asked[1][3] == [8]


def test_what_is_not_measured_is_shown(call, asked):
    outcome = call("bench")
    assert "Not measured" in outcome.out
    assert "openvino-int8" in outcome.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--enclave", "emulator"], "together"),
        (["--count", "instructions"], "together"),
        (["--enclave", "emulator", "--count", "instructions", "--rounds", "3"], "--rounds"),
        (["--enclave", "emulator", "--count", "instructions", "--engine", "openvino-int8"], "--engine"),
        (["--repeats", "3"], "--repeats"),
        (["--batch", "0"], "0"),
        (["--engine", "openvino"], "openvino"),
        (["vgg8"], "vgg8"),
        (["vgg7", "--inside", "last:x", "--engine", "torch-eager-fp32", "--against", "nobody"], "nobody"),
    ],
)
def test_what_cannot_be_asked_is_refused(call, args, said):
    outcome = call("bench", *args)
    assert outcome.code == 2
    assert said in outcome.err
    assert outcome.out == ""


def test_outputs_are_not_overwritten(call, asked, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for option in ("-o", "--figure"):
        assert call("bench", option, taken).code == 2
    assert asked == []
    assert taken.read_text() == "mine"


# --- reproduce ---


def test_papers_ratios_are_those_of_its_table():
    """The poster: AlexNet 4.65 s and 13.06 s, quantized 1.88 s and 6.62 s."""
    found = yang2024_cost.paper_ratios("alexnet", 8)
    assert found.cost == pytest.approx(3.521, abs=1e-3)
    assert found.to_float == pytest.approx(1.424, abs=1e-3)
    assert found.vanilla_to_float == pytest.approx(0.404, abs=1e-3)
    assert found.weights_to_float == pytest.approx(0.25, abs=1e-3)
    assert yang2024_cost.paper_ratios("resnet20", 32).cost == pytest.approx(1.265, abs=1e-3)
    assert len(yang2024_cost.PAPER) == 8


RATIOS = {
    ("cloister-inside-fp32", "cloister-outside-fp32"): 1.5,
    ("cloister-inside", "cloister-outside"): 2.0,
    ("cloister-inside", "cloister-outside-fp32"): 0.8,
    ("cloister-inside-fp32", "cloister-outside"): 3.75,
    ("cloister-outside", "cloister-outside-fp32"): 0.4,
    ("cloister-outside-fp32", "cloister-outside"): 2.5,
}


def made_row(model, engine, against, ratio):
    bits, inside = 32 if "fp32" in engine else 8, "all" if "-inside" in engine else "none"
    return compare.BenchRow(
        model=model,
        engine=engine,
        against=against,
        ratio=ratio,
        ratio_low=ratio * 0.9,
        ratio_high=ratio * 1.1,
        batch=1,
        bits=bits,
        inside=inside,
        n_inside=8,
        budget_bytes=None,
        inside_peak_bytes=5000,
        weight_bytes=1000 * bits,
        agreement=1.0,
    )


def test_reproduction_has_the_papers_eight_rows(call, monkeypatch):
    def answer(model_names, engine_names, *, against, rounds, progress):
        rows = [made_row(model, *pair, ratio) for model in model_names for pair, ratio in RATIOS.items()]
        missing = compare.NotMeasured(model="vgg16", engine="cloister-inside-fp32@1MiB", batch=1, reason="too small")
        return compare.BenchDocument(
            isolation="none", processor="p", rounds=rounds, versions={}, rows=tuple(rows), missing=(missing,)
        )

    monkeypatch.setattr(yang2024_cost, "compare", answer)
    document = call("reproduce", "yang2024-cost", "-f", "json").document
    assert {(row["model"], row["bits"]) for row in document["rows"]} == set(yang2024_cost.PAPER)
    assert len(document["rows"]) == 8
    for row in document["rows"]:
        found = row["found"]
        quantized = row["bits"] == 8
        assert found["cost"] == (2.0 if quantized else 1.5)
        assert found["to_float"] == (0.8 if quantized else 1.5)
        assert found["vanilla_to_float"] == (0.4 if quantized else 1.0)
        assert found["weights_to_float"] == (0.25 if quantized else 1.0)
    assert document["missing"] == [{"model": "vgg16", "row": "cloister-inside-fp32@1MiB", "reason": "too small"}]
    monkeypatch.setenv("COLUMNS", "120")
    assert "alexnet(Q)" in call("reproduce", "yang2024-cost").out


def test_reproduction_by_count_says_what_it_leaves_out(call, monkeypatch):
    def answer(models, *, budgets, repeats, progress):
        from cloister.bench.counts import CountDocument, CountRow

        numbers = dict.fromkeys(["instructions", "crossing", "unsealing", "compute", "compute_per_multiply_add"], 1.0)
        rows = [
            CountRow(
                model=model,
                inside=inside,
                budget_bytes=1 << 20,
                inside_bytes=9,
                n_slices=1,
                streamed_bytes=0,
                images=images,
                calls=1,
                unsealing_per_byte=None,
                against_outside=1.25,
                spread=0.0,
                **numbers,
            )
            for model in models
            for inside, images in (("none", 1), ("all", 1), ("all", 4))
        ]
        return CountDocument(
            enclave="emulator", board="b", march="m", isolation="i", repeats=repeats, rows=tuple(rows), missing=()
        )

    monkeypatch.setattr(yang2024_cost, "count_instructions", answer)
    document = call("reproduce", "yang2024-cost", "--enclave", "emulator", "-f", "json").document
    assert [(row["model"], row["bits"], row["found"]["cost"]) for row in document["rows"]] == [
        (model, 8, 1.25) for model in ("alexnet", "vgg11", "vgg16", "resnet20")
    ]
    assert {one["row"] for one in document["missing"]} == {"float32"}
