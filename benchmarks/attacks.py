"""How long attacks take to score 50,000 samples with 64 shadow models, beside a loop over the samples.

    python -m benchmarks.attacks [--samples N] [--shadows M] [--rounds N] [-o benchmarks/results/attacks.json]

Scaled logits are random: time does not depend on them. The loop is the published code's: numpy's median and standard
deviation of each sample, and scipy's density; it runs on the first 1,000 samples, and its time is told per 50,000. Both
take turns, since times on a shared machine mean little.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from scipy import stats

from cloister.attacks import lira, metrics, rmia

LOOP = 1000


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def loop(phi, shadow_phi, is_in):
    for at, value in enumerate(phi):
        inside, outside = shadow_phi[is_in[:, at], at], shadow_phi[~is_in[:, at], at]
        stats.norm.logpdf(value, np.median(inside), np.std(inside) + 1e-30)
        stats.norm.logpdf(value, np.median(outside), np.std(outside) + 1e-30)


def works(n, n_shadows):
    """What is timed, by name, with the number of samples it has."""
    rng = np.random.default_rng(0)
    is_member = rng.random(n) < 0.5
    phi, shadow_phi = rng.normal(size=n) + is_member, rng.normal(size=(n_shadows, n))
    is_in = rng.random((n_shadows, n)) < 0.5
    is_in[1::2] = ~is_in[::2]
    p, reference_p = 1 / (1 + np.exp(-phi)), 1 / (1 + np.exp(-shadow_phi))
    half = n // 2
    few = phi[:LOOP], shadow_phi[:, :LOOP], is_in[:, :LOOP]
    case = p[:half], reference_p[:, :half], is_in[:, :half], p[half:], reference_p[:, half:]
    return {
        "lira online": (n, lambda: lira.online(phi, shadow_phi, is_in)),
        "lira online, fixed variance": (n, lambda: lira.online(phi, shadow_phi, is_in, fixed_variance=True)),
        "lira offline": (n, lambda: lira.offline(phi, shadow_phi, is_in)),
        "lira online, a loop": (LOOP, lambda: loop(*few)),
        "rmia offline, half of them the population": (n, lambda: rmia.offline(*case)),
        "metrics, 1,000 resamples": (n, lambda: metrics.evaluate(phi, is_member)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--shadows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=None)
    options = parser.parse_args()
    timed = works(options.samples, options.shadows)
    found = {name: [] for name in timed}
    for _ in range(options.rounds):
        for name, (n, work) in timed.items():
            found[name].append(seconds(work) * options.samples / n)
    rows = [
        {"work": name, "median_s": statistics.median(times), "least_s": min(times)} for name, times in found.items()
    ]
    for row in rows:
        print(f"{row['work']:42} {row['median_s']:8.3f} s  (least {row['least_s']:.3f} s)")
    if options.output:
        document = {"schema": 1, "samples": options.samples, "shadows": options.shadows, "rounds": options.rounds}
        options.output.write_text(json.dumps({**document, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
