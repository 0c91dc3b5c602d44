"""Whether bfloat16 keeps the order of the layers: VGG-7 measured in both precisions, on real images.

    CLOISTER_DATA=FOLDER python -m benchmarks.precision [--samples N] [--epochs N] [--repeats N] [-o OUT.json]

One base for each data set, trained in float32 on N images of it, 20 epochs. Then exposure and memorisation of its
layers by `cloister.measure` in float32 and in bfloat16 (channels-last), with the same S, T, orders and new weights.
Printed are both values of each layer, and Spearman's rank correlation between the precisions.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch
from scipy.stats import spearmanr

import cloister
from cloister import zoo
from cloister.checkpoint import load_checkpoint, load_weights
from cloister.data import load_dataset
from cloister.target import Target, with_members
from cloister.trainer import train

SETS = {"fashion-mnist": "FashionMNIST", "cifar10": "cifar10.npz"}
PRECISIONS = ("float32", "bfloat16")


def trained(name, dataset, n_samples, folder):
    torch.manual_seed(0)
    model = zoo.build("vgg7", input_shape=dataset.input_shape, n_classes=dataset.n_classes)
    target = Target(model=model, name="vgg7", input_shape=dataset.input_shape, n_classes=dataset.n_classes)
    path = folder / f"{name}.safetensors"
    train(target, dataset, out=path, epochs=20, n_members=n_samples, precision="float32")
    tensors, checkpoint = load_checkpoint(path)
    load_weights(model, tensors, name)
    return with_members(
        Target(
            model=model.eval(), name="vgg7", input_shape=dataset.input_shape, n_classes=dataset.n_classes,
            checkpoint=checkpoint,
        ),
        dataset,
    )  # fmt: skip


def mean(interval):
    return None if interval is None else interval.mean


def rows_of(name, options, folder):
    dataset = load_dataset(str(Path(os.environ["CLOISTER_DATA"]) / SETS[name]))
    target = trained(name, dataset, options.samples, folder)
    found = {
        precision: cloister.measure(
            target, epochs=options.epochs, repeats=options.repeats, n_samples=options.samples, controls=(),
            precision=precision,
        )
        for precision in PRECISIONS
    }  # fmt: skip
    for layers in zip(*(found[precision].layers for precision in PRECISIONS), strict=True):
        row = {"data": name, "layer": layers[0].name}
        for precision, layer in zip(PRECISIONS, layers, strict=True):
            row[f"exposure_{precision}"] = mean(layer.measured.by_loss.exposure)
            row[f"memorisation_{precision}"] = mean(layer.memorisation.measured)
        yield row


def correlations(rows):
    for name in SETS:
        for measure in ("exposure", "memorisation"):
            pairs = [[row[f"{measure}_{precision}"] for precision in PRECISIONS] for row in rows if row["data"] == name]
            known = [pair for pair in pairs if None not in pair]
            yield {"data": name, "measure": measure, "n": len(known), "rho": float(spearmanr(known).statistic)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in SETS for row in rows_of(name, options, Path(folder))]
    for row in rows:
        print(*(f"{value:.3f}" if isinstance(value, float) else value for value in row.values()), sep="\t")
    for one in correlations(rows):
        print(f"{one['data']}, {one['measure']}: rho {one['rho']:.2f} between the precisions ({one['n']} layers)")
    if options.output:
        settings = {name: getattr(options, name) for name in ("samples", "epochs", "repeats")}
        document = {"schema": 1, **settings, "rows": rows, "correlations": [*correlations(rows)]}
        options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
