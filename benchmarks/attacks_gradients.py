"""Per-sample gradient features of ResNet-20: all images of a chunk at once, beside one backward pass for each.

    python -m benchmarks.attacks_gradients [--rounds N] [--images N] [-o benchmarks/results/attacks_gradients.json]

Both give features of the same visible layers (all of them: nothing is inside), in float32 on one thread; the loop is
what one writes first, over the modules as they are, batch norms by themselves. `gradients` is the same without summing
up. Ways take turns, and ratios are of one round. Weights and images (3x32x32, 100 classes) are random: time does not
depend on them.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from cloister import zoo
from cloister.attacks import per_sample as ours
from cloister.attacks.observations import Device
from cloister.bench.timing import paired_ratio
from cloister.protection import lower_target
from cloister.target import Target

SHAPE, N_CLASSES = (3, 32, 32), 100


class Loop:
    """One image after the other, with hooks for activations."""

    def __init__(self, model, seen):
        self.model, self.seen = model, seen
        self.parameters = dict(model.named_parameters())
        self.kept = []
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.register_forward_hook(lambda module, given, result: self.kept.append(result.detach()))

    def gradients(self):
        for image, label in zip(self.seen.images, self.seen.labels, strict=True):
            self.kept.clear()
            scores = self.model(image[None])
            loss = functional.cross_entropy(scores, label[None])
            yield torch.autograd.grad(loss, list(self.parameters.values())), scores.detach(), label

    def features(self):
        rows = []
        for gradients, scores, label in self.gradients():
            pairs = zip(gradients, self.parameters.values(), strict=True)
            row = [ours.summarize_gradient(one[None], weight.detach()) for one, weight in pairs]
            row += [ours._moments(one) for one in self.kept]
            row += [ours._loss(scores, label[None]), ours._output(scores, N_CLASSES)]
            rows.append(torch.cat(row, 1))
        return torch.cat(rows)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(rounds, n_images):
    """Seconds of each way, (rounds,), by what is computed."""
    model = zoo.build("resnet20", input_shape=SHAPE, n_classes=N_CLASSES)
    device = Device(lower_target(Target(model=model, name="resnet20", input_shape=SHAPE), bits=32), "none")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(n_images, *SHAPE)).astype(np.float32)
    seen = device.observe((images, rng.integers(0, N_CLASSES, n_images)))
    loop = Loop(model, seen)
    view, names = device.view, list(device.view.parameters)
    chunks = [seen.take(slice(start, start + 16)) for start in range(0, n_images, 16)]
    ways = {
        "features": (loop.features, lambda: ours.per_sample(view, seen)),
        "gradients": (
            lambda: [None for _ in loop.gradients()],
            lambda: [None for chunk in chunks if ours.per_sample_gradients(view, chunk, names)],
        ),
    }
    for pair in ways.values():
        for way in pair:
            way()
    turns = [{what: [seconds(way) for way in pair] for what, pair in ways.items()} for _ in range(rounds)]
    return {what: np.array([turn[what] for turn in turns]).T for what in ways}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("-o", "--output", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for what, (slow, fast) in measure(options.rounds, options.images).items():
        ms = {"loop_ms": 1e3 * slow.min() / options.images, "ours_ms": 1e3 * fast.min() / options.images}
        rows.append({"what": what, **paired_ratio(slow, fast)._asdict(), **ms})
        print(
            "{what:10} x {ratio:.2f} ({low:.2f} to {high:.2f}), ms per image {loop_ms:.1f}, {ours_ms:.1f}".format(
                **rows[-1]
            )
        )
    if options.output:
        document = {"schema": 1, "rounds": options.rounds, "images": options.images, "rows": rows}
        options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
