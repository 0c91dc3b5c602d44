"""What the paper's exposure and memorisation say of networks whose memory is known, and of their controls.

    CLOISTER_DATA=FOLDER python -m benchmarks.memorisation [--images N] [--state FOLDER] [-o FILE] [--figure FILE]

VGG-7 on Fashion-MNIST and MNIST with members S, non-members T and a third set U of N images each, of which a fifth have
a label at random, so that there is something to remember. `cloister.measure` (10 epochs, 3 repeats) of

    target             trained on S
    its controls       a base of U alone; each layer's weights drawn anew; on Fashion-MNIST
    widths reversed    trained on S, with 32, 32, 32, 16, 16, 16 channels
    planted LAYER      trained on U, then this layer alone on S: no other has seen S
    frozen LAYER       trained on S but for this layer, which stays as it was drawn: it has seen nothing

Planted and frozen layers are on Fashion-MNIST alone.
Finished fine-tunings are kept in the state folder; the trainings between them are done again, to the same bits.
"""

import argparse
import copy
import dataclasses
import io
import json
import math
import os
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import nn
from torch.nn import functional

from cloister import load_dataset, measure
from cloister.target import Target

WIDTHS = {
    "paper": (16, 16, "M", 32, 32, "M", 32, 32, "M"),
    "reversed": (32, 32, "M", 32, 16, "M", 16, 16, "M"),
}
PLANTED = ("features.2", "features.12", "classifier.2")
FROZEN = "features.5"
BOTH_WIDTHS = ("target", "widths reversed")
NOISE, BASE_EPOCHS, BASE_RATE = 0.2, 60, 2e-3
SETTINGS = {"epochs": 10, "repeats": 3, "lr": 3e-3, "batch_size": 50, "seed": 0}


def build(widths):
    """VGG-7 for 1x28x28 and 10 classes, with the layers' names of `zoo:vgg7`."""
    features, n_in = [], 1
    for entry in WIDTHS[widths]:
        features += [nn.MaxPool2d(2)] if entry == "M" else [nn.Conv2d(n_in, entry, 3, padding=1), nn.ReLU()]
        n_in = n_in if entry == "M" else entry
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential()
        model.features = nn.Sequential(*features)
        model.flatten = nn.Flatten()
        model.classifier = nn.Sequential(nn.Linear(n_in * 9, 64), nn.ReLU(), nn.Linear(64, 10))
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
    return model


def fit(model, pair, layer=None, but=None):
    """Train all of it, one layer alone, or all but one."""
    images, labels = (torch.from_numpy(part) for part in pair)
    model = model.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    named = [(name.rpartition(".")[0], one) for name, one in model.named_parameters()]
    parameters = [one for name, one in named if name != but and layer in (None, name)]
    n_steps = math.ceil(len(labels) / SETTINGS["batch_size"])
    optimizer = torch.optim.Adam(parameters, BASE_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, BASE_RATE, total_steps=BASE_EPOCHS * n_steps)
    for epoch in range(BASE_EPOCHS):
        for batch in np.array_split(np.random.default_rng(epoch).permutation(len(labels)), n_steps):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(images[batch])
            optimizer.zero_grad()
            functional.cross_entropy(logits.float(), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def draw_sets(name, n_images):
    """S, T and U."""
    data, rng = load_dataset(str(Path(os.environ["CLOISTER_DATA"]) / name)), np.random.default_rng(0)
    chosen = rng.permutation(data.n_train)[: 3 * n_images]
    labels = data.labels(chosen).copy()
    is_noise = rng.random(len(labels)) < NOISE
    labels[is_noise] = rng.integers(0, 10, is_noise.sum())
    parts = np.split(np.arange(3 * n_images), 3)
    return [(data.images(chosen[part]), labels[part]) for part in parts]


def cases(sets, *, every):
    """Name, target and control base of each case."""
    s, t, u = sets

    def target(model, members=s):
        return Target(model=model, name="vgg7", input_shape=(1, 28, 28), n_classes=10, members=members, nonmembers=t)

    unseen = fit(build("paper"), u) if every else None
    control = dataclasses.replace(target(unseen, u), nonmembers=None) if every else None
    yield "target", target(fit(build("paper"), s)), control
    yield "widths reversed", target(fit(build("reversed"), s)), None
    if every:
        for name in PLANTED:
            yield f"planted {name}", target(fit(copy.deepcopy(unseen), s, layer=name)), None
        yield f"frozen {FROZEN}", target(fit(build("paper"), s, but=FROZEN)), None


def values_of(interval):
    return None if interval is None else [interval.mean, interval.low, interval.high]


def row_of(data, name, exposure):
    """What is kept of a case: for each measure a list of [mean, low, high] or None for each layer."""

    def ratio(comparison):
        return comparison and values_of(comparison.by_loss.exposure)

    layers = exposure.layers
    found = {
        "exposure": [ratio(one.measured) for one in layers],
        "memorisation": [values_of(one.memorisation.measured) for one in layers],
    }
    if exposure.unseen_base is not None:
        found["exposure, unseen base"] = [ratio(one.unseen_base) for one in layers]
        found["exposure, weights anew"] = [ratio(one.reinitialised) for one in layers]
        found["memorisation, unseen base"] = [values_of(one.memorisation.unseen_base) for one in layers]
        found["memorisation, weights anew"] = [values_of(one.memorisation.reinitialised) for one in layers]
    return {
        "data": data,
        "case": name,
        "gap": exposure.base.epsilon,
        "layers": [one.name for one in layers],
        "parameters": [one.n_parameters for one in layers],
        "with_parameters": [exposure.ranking.with_parameters, exposure.memorisation_ranking.with_parameters],
        "with_depth": [exposure.ranking.with_depth, exposure.memorisation_ranking.with_depth],
        "order": [list(exposure.ranking.layers), list(exposure.memorisation_ranking.layers)],
        "seconds": exposure.seconds,
        **found,
    }


def between_widths(rows, data, what):
    """Spearman's rank correlation, by position, of the layers' values in both networks."""
    both = [next(r for r in rows if (r["data"], r["case"]) == (data, case)) for case in BOTH_WIDTHS]
    pairs = [(a[0], b[0]) for a, b in zip(both[0][what], both[1][what], strict=True) if a and b]
    return float(stats.spearmanr(pairs).statistic) if len(pairs) > 2 else None


def run(n_images, state):
    rows = []
    for data in ("FashionMNIST", "MNIST"):
        for name, target, control in cases(draw_sets(data, n_images), every=data == "FashionMNIST"):
            controls = ("reinitialised", "unseen-base") if control else ()
            rows.append(
                row_of(data, name, measure(target, **SETTINGS, controls=controls, control=control, state=state))
            )
            print(f"{data} {name}: {rows[-1]['seconds']:.0f} s", flush=True)
    correlations = [
        {"data": data, "measure": what, "between widths": between_widths(rows, data, what)}
        for data in ("FashionMNIST", "MNIST")
        for what in ("exposure", "memorisation")
    ]
    return {"schema": 1, "images": n_images, "noise": NOISE, **SETTINGS, "rows": rows, "correlations": correlations}


def draw(document):
    """Both measures: of the target and its controls, of both widths, and of what was planted or frozen."""
    rows = document["rows"]
    columns = [
        ("FashionMNIST: controls", [(rows[0], part) for part in ("", ", unseen base", ", weights anew")]),
        ("FashionMNIST: planted, frozen", [(row, "") for row in rows if row["case"].startswith(("planted", "frozen"))]),
        *(
            (f"{data}: widths", [(row, "") for row in rows if row["data"] == data and row["case"] in BOTH_WIDTHS])
            for data in ("FashionMNIST", "MNIST")
        ),
    ]
    figure = Figure((4.2 * len(columns), 8), layout="constrained")
    grid = figure.subplots(2, len(columns), sharey="row")
    for of_measure, what in zip(grid, ("exposure", "memorisation"), strict=True):
        of_measure[0].set_ylabel(what)
        for axes, (title, series) in zip(of_measure, columns, strict=True):
            draw_panel(axes, what, series)
            axes.set_title(title)
    grid[0][0].set_ylim(-0.1, 1.3)
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "cloister"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def draw_panel(axes, what, series):
    for at, (row, part) in enumerate(series):
        points = [(i + 0.12 * (at - 1), *one) for i, one in enumerate(row[what + part]) if one is not None]
        if points:
            x, mean, low, high = np.array(points).T
            label = part.strip(", ") or row["case"]
            axes.errorbar(x, mean, [mean - low, high - mean], fmt="o", capsize=2, markersize=4, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(series[0][0]["layers"])), series[0][0]["layers"], rotation=60, ha="right")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--state", type=Path, default=Path("memorisation.state"))
    parser.add_argument("-o", "--output", type=Path, default=None)
    parser.add_argument("--figure", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    document = run(options.images, options.state)
    for row in document["rows"]:
        for what in ("exposure", "memorisation"):
            said = " ".join("    - " if one is None else f"{one[0]:6.2f}" for one in row[what])
            print(f"{row['data']:13} {row['case']:20} {what:13} {said}")
    for one in document["correlations"]:
        print(one)
    print(f"{time.perf_counter() - began:.0f} s")
    if options.output:
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    if options.figure:
        options.figure.write_bytes(draw(document))


if __name__ == "__main__":
    main()
