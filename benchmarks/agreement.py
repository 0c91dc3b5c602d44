"""Top-1 agreement of the protected int8 model with torchao's converted model, on whole test sets.

    python -m benchmarks.agreement --victims FOLDER --data FOLDER [--limit N] [-o benchmarks/results/agreement.json]

The committed results are of victims that were trained so, on half of each training set:

    cloister train zoo:vgg7 --data MNIST --epochs 2 -o vgg7.safetensors
    cloister train zoo:alexnet --data cifar100.npz --epochs 8 -o alexnet.safetensors
    cloister train zoo:resnet20 --data cifar10.npz --epochs 14 -o resnet20.safetensors
    cloister train zoo:vgg11 --data cifar10.npz --epochs 3 -o vgg11.safetensors
    cloister train zoo:vgg16 --data cifar10.npz --epochs 3 -o vgg16.safetensors

The converted model is evaluated twice: as it is, in float32, and in float64, which is what it means: float32 sums fall
on the other side of a half now and then, and the top class changes where two logits all but tie.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from tests.reference import run_exactly

import cloister
from cloister.protection import lower_target, protect_lowered

DATA = {
    "vgg7": "MNIST",
    "alexnet": "cifar100.npz",
    "resnet20": "cifar10.npz",
    "vgg11": "cifar10.npz",
    "vgg16": "cifar10.npz",
}


def run(model, x):
    with torch.no_grad():
        return np.concatenate([model(part).numpy() for part in torch.from_numpy(x).split(100)])


def agreement(a, b):
    return float(np.mean(a.argmax(1) == b.argmax(1)))


def accuracy(logits, labels):
    return float(np.mean(logits.argmax(1) == labels))


def measure(name, victims, data, limit):
    dataset = cloister.load_dataset(str(data / DATA[name]))
    target = cloister.load_target(f"zoo:{name}", weights=victims / f"{name}.safetensors")
    lowered = lower_target(target, bits=8, calibration=dataset.images(slice(1024)))
    x, y = dataset.images(slice(limit), "test"), dataset.labels(slice(limit), "test")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.cloister"
        plan = protect_lowered(lowered, path, inside="last:3", budget_bytes=1 << 20).manifest.plan
        with cloister.load(path) as session:
            ours = session.run(x)
            stats = session.stats
    theirs = run(lowered.module, x)
    exact = run_exactly(lowered.module, x)
    floats = run(target.model.eval(), x)
    return {
        "model": name,
        "data": dataset.name,
        "n_images": len(x),
        "agreement_torchao": agreement(ours, theirs),
        "agreement_torchao_exact": agreement(ours, exact),
        "agreement_torchao_with_exact": agreement(theirs, exact),
        "agreement_float32": agreement(ours, floats),
        "accuracy_float32": accuracy(floats, y),
        "accuracy_torchao_int8": accuracy(theirs, y),
        "accuracy_protected_int8": accuracy(ours, y),
        "largest_relative_difference": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
        "inside": plan.inside,
        "budget_bytes": plan.budget_bytes,
        "inside_peak_bytes": stats.inside_peak_bytes,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--victims", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("-o", "--output", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in DATA:
        if (options.victims / f"{name}.safetensors").exists():
            rows.append(measure(name, options.victims, options.data, options.limit))
            row = rows[-1]
            print(
                f"{name:10} n={row['n_images']:6} torchao {row['agreement_torchao']:.3%} "
                f"exact {row['agreement_torchao_exact']:.3%} "
                f"(torchao with exact {row['agreement_torchao_with_exact']:.3%}) "
                f"float32 {row['agreement_float32']:.3%} accuracy {row['accuracy_float32']:.3%} → "
                f"{row['accuracy_protected_int8']:.3%} peak {row['inside_peak_bytes']}",
                flush=True,
            )
    if options.output:
        options.output.write_text(json.dumps({"schema": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
