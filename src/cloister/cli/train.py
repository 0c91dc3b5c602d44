"""`cloister train`: train a model on a known part of a data set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloister.cli import options, ui
from cloister.outputs import check_output

if TYPE_CHECKING:
    from cloister.trainer import TrainResult

__all__ = ["train"]


@click.command()
@click.argument("target")
@click.option(
    "--data", required=True, metavar="SPEC", help="`digits`, an .npz file, or a folder of idx or image files."
)
@click.option("-o", "--out", type=options.FILE, metavar="FILE", help="Weights to write.  [default: MODEL.safetensors]")
@click.option(
    "--epochs", type=click.IntRange(1), metavar="N", default=30, show_default=True, help="Passes over the members."
)
@click.option(
    "--members", type=click.IntRange(2), metavar="N", help="Images to train on.  [default: half of the training part]"
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    default=2e-3,
    show_default=True,
    help="Peak learning rate.",
)
@click.option(
    "--batch-size", type=click.IntRange(2), metavar="N", default=64, show_default=True, help="Images in one step."
)
@click.option("--seed", type=options.SEED, metavar="N", default=0, show_default=True, help="Of weights, cut and order.")
@options.force
@options.output_format
def train(
    target: str,
    data: str,
    out: Path | None,
    epochs: int,
    members: int | None,
    lr: float,
    batch_size: int,
    seed: int,
    force: bool,
    format: str,
) -> None:
    """Train TARGET on a part of a data set: its members.

    TARGET is `zoo:NAME` (alexnet, resnet20, vgg7, vgg11, vgg16) or `package.module:function`. The weights remember
    which images were members, so that attacks can be measured. An interrupted training goes on where it was when the
    same command is given again.
    """
    out = out or Path(re.sub(r"\W+", "-", target.removeprefix("zoo:")) + ".safetensors")
    check_output(out, force=force)
    from cloister.data import load_dataset
    from cloister.target import load_target
    from cloister.trainer import train as run_training

    dataset = load_dataset(data)
    loaded = load_target(target, input_shape=dataset.input_shape, n_classes=dataset.n_classes, seed=seed)
    _announce(out, f"training {loaded.name} on {members or dataset.n_train // 2} of {dataset.n_train} images")
    try:
        with ui.progress() as progress:
            result = run_training(
                loaded,
                dataset,
                out=out,
                epochs=epochs,
                n_members=members,
                seed=seed,
                lr=lr,
                batch_size=batch_size,
                progress=progress,
                force=force,
            )
    except KeyboardInterrupt:
        ui.say("the same command goes on with the last epoch that was finished")
        raise
    if format == "json":
        ui.json(result)
    else:
        _show(result, target, data)


def _announce(out: Path, what: str) -> None:
    ui.say(what)
    resume = out.with_name(f"{out.name}.resume")
    if resume.exists():
        ui.say(f"found `{resume}`: going on with the training that was interrupted")


def _show(result: TrainResult, target: str, data: str) -> None:
    rows = [
        ("trained on", f"{ui.number(result.n_members)} members of {result.data}, {result.n_epochs} epochs"),
        ("arithmetic", result.precision),
        ("time", ui.ago(result.seconds)),
        ("accuracy, members", ui.percent(result.train_accuracy)),
        ("accuracy, test", ui.percent(result.test_accuracy)),
        ("gap", f"{ui.percent(result.generalization_gap)}: what is learnt of the members alone"),
    ]
    ui.fields(result.path, rows)
    ui.next_steps("Next", [["cloister", "protect", target, "--weights", result.path, "--data", data]])
