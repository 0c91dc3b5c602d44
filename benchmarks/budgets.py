"""What a budget costs: every zoo model all inside, against nothing inside, int8 and float32.

    python -m benchmarks.budgets [--rounds N] [--images N] [-o benchmarks/results/budgets.json]

For each budget: slices, how many of them stay, lanes, the peak that the enclave measured, and for single images and for
whole groups the bytes opened for an image and the time against the same program outside, as the median of ratios of
neighbouring runs (one thread; single times on a shared machine mean little). Weights are random: time and memory do not
depend on them.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import cloister
from cloister import zoo
from cloister.errors import PlanError
from cloister.protection import lower_target, protect_lowered
from cloister.units import format_bytes

BUDGETS = [None, 8 << 20, 1 << 20, 256 << 10]


def lower(name, bits):
    target = cloister.load_target(f"zoo:{name}", input_shape=(3, 32, 32), n_classes=100)
    return lower_target(target, bits=bits, calibration=images(64))


def images(n):
    return np.random.default_rng(0).uniform(-1, 1, (n, 3, 32, 32)).astype(np.float32)


def seconds(session, x):
    start = time.perf_counter()
    session.run(x)
    return time.perf_counter() - start


def compare(outside, inside, x, rounds):
    """Ratios inside / outside of neighbouring runs, and the bytes opened for an image."""
    for session in (outside, inside):
        session.run(x)
    before = inside.stats.slice_bytes_opened
    ratios = [seconds(inside, x) / seconds(outside, x) for _ in range(rounds)]
    low, ratio, high = map(float, np.quantile(ratios, [0.25, 0.5, 0.75]))
    opened = (inside.stats.slice_bytes_opened - before) / (rounds * len(x))
    return {"n_images": len(x), "opened_bytes": opened, "ratio": ratio, "ratio_low": low, "ratio_high": high}


def measure(name, bits, folder, options):
    lowered = lower(name, bits)
    plain = protect_lowered(lowered, folder / "plain", inside="none", force=True).path
    for budget in BUDGETS:
        try:
            protected = protect_lowered(lowered, folder / "inside", inside="all", budget_bytes=budget, force=True)
        except PlanError:
            continue
        manifest = protected.manifest
        lanes = manifest.plan.lanes
        groups = images(-(-options.images // lanes) * lanes)
        with cloister.load(plain) as outside, cloister.load(protected.path) as inside:
            single = compare(outside, inside, groups[:1], options.rounds)
            batch = compare(outside, inside, groups, options.rounds)
            peak = inside.stats.inside_peak_bytes
        yield {
            "model": name,
            "bits": bits,
            "budget_bytes": budget,
            "inside_bytes": manifest.plan.inside_bytes,
            "inside_peak_bytes": peak,
            "smallest_budget_bytes": manifest.plan.smallest_budget_bytes,
            "n_slices": len(manifest.slices),
            "n_resident": sum(piece.resident for piece in manifest.slices),
            "lanes": lanes,
            "single": single,
            "batch": batch,
        }


def show(row):
    budget = format_bytes(row["budget_bytes"]) if row["budget_bytes"] else "none"
    print(
        f"{row['model']:9} {row['bits']:2} bits  budget {budget:8}  peak {format_bytes(row['inside_peak_bytes']):9} "
        f"slices {row['n_slices']:4}, {row['n_resident']:3} stay, lanes {row['lanes']:2}  "
        f"single {show_runs(row['single'])}  batch {show_runs(row['batch'])}  "
        f"smallest {format_bytes(row['smallest_budget_bytes'])}",
        flush=True,
    )


def show_runs(runs):
    opened = format_bytes(int(runs["opened_bytes"]))
    return f"{opened:8} x {runs['ratio']:.2f} ({runs['ratio_low']:.2f} to {runs['ratio_high']:.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in zoo.NAMES:
            for bits in (8, 32):
                for row in measure(name, bits, Path(folder), options):
                    show(row)
                    rows.append(row)
    if options.output:
        options.output.write_text(json.dumps({"schema": 2, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
