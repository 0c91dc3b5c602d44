"""What the cached prefix saves: fine-tuning each layer of VGG-7, against running the whole model each time.

    python -m benchmarks.exposure [--rounds N] [--images N] [-o benchmarks/results/exposure.json]

M_p and M_r of every layer, two epochs each, with readings: by `cloister.exposure` in float32 and in bfloat16
(channels-last), and by the slow, obvious implementation of `tests/reference_exposure.py` in float32, whose bits the
first has. In each round all three take turns at a layer; ratios are of one round, since times on a shared machine
mean little. Weights and images (3x32x32) are random: time does not depend on them.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tests import reference_exposure

from cloister import zoo
from cloister.bench.timing import paired_ratio
from cloister.exposure.cut import cut_before
from cloister.exposure.network import Network
from cloister.exposure.tuning import Activations, Samples, Settings, fine_tune, initial_tensors

SHAPE = (3, 32, 32)
RECIPE = {"epochs": 2, "batch_size": 100, "seed": 0}
RATE = 1e-3


class Ours:
    """Fine-tuning by the library."""

    def __init__(self, model, precision, images, labels, folder):
        self.network = Network(model, SHAPE, channels_last=precision == "bfloat16")
        self.settings = Settings(**RECIPE, learning_rate=RATE, precision=precision)
        self.samples = Samples(images=self.network.images(images), labels=labels, n_members=len(labels) // 2)
        self.folder = folder

    def run(self, group):
        with self.settings.arithmetic():
            cut = cut_before(self.network, group, self.samples.images[:3])
        activations = Activations(cut, self.samples, self.settings, folder=self.folder, bound_bytes=1 << 30)
        for fit in ("p", "r"):
            start = initial_tensors(self.network, group)
            where = {"variant": "target", "repeat": 0, "fit": fit, "on_epoch": lambda _: None}
            fine_tune(cut, activations, self.samples, start, self.settings, **where)


def run_slowly(model, images, labels, group):
    for fit in ("p", "r"):
        settings = {"fit": fit, "repeat": 0, "precision": "float32", "lr": RATE, **RECIPE}
        reference_exposure.fine_tune(model, list(group.parameters), images, labels, len(labels) // 2, **settings)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(rounds, n_images, folder):
    """Seconds of each way, (rounds, layers), and the layers' names."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(-1, 1, (n_images, *SHAPE)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 10, n_images))
    model = zoo.build("vgg7", input_shape=SHAPE, n_classes=10)
    ours = {precision: Ours(model, precision, images, labels, folder) for precision in ("float32", "bfloat16")}
    groups = ours["float32"].network.groups()
    found = {way: np.empty((rounds, len(groups))) for way in ("slow", *ours)}
    for turn in range(rounds):
        for at, group in enumerate(groups):
            found["slow"][turn, at] = seconds(lambda group=group: run_slowly(model, images, labels, group))
            for precision, way in ours.items():
                found[precision][turn, at] = seconds(lambda group=group, way=way: way.run(group))
    return found, [group.name for group in groups]


def rows_of(found, names):
    for way in ("float32", "bfloat16"):
        for name, slow, fast in [
            *zip(names, found["slow"].T, found[way].T, strict=True),
            ("all layers", found["slow"].sum(1), found[way].sum(1)),
        ]:
            yield {"layer": name, "precision": way, **paired_ratio(slow, fast)._asdict()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(rows_of(*measure(options.rounds, options.images, Path(folder))))
    for row in rows:
        print(f"{row['precision']:8} {row['layer']:13} x {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})")
    if options.output:
        document = {"schema": 1, "rounds": options.rounds, "images": options.images, "rows": rows}
        options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
