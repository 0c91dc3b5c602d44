"""`cloister protect`: compile a model into a sealed bundle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click
import msgspec

from cloister.boards import Suite, load_board, load_boards
from cloister.bundle.crossing import Crossing, crossings
from cloister.bundle.keys import check_devices
from cloister.cli import options, plans, ui
from cloister.enclave.connect import is_enclave
from cloister.outputs import check_output
from cloister.planning.plan import Plan, Slicing
from cloister.units import format_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cloister.data import Dataset
    from cloister.protection import Protected
    from cloister.target import Target

__all__ = ["protect"]


class ProtectDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `cloister protect -f json` prints."""

    schema: Literal["cloister.protect/1"] = "cloister.protect/1"
    path: str
    file_bytes: int
    model: str
    suite: Suite
    devices: tuple[str, ...]
    plan: Plan
    crossings: tuple[Crossing, ...]


@click.command()
@click.argument("target")
@click.option("--weights", type=options.FILE, metavar="FILE", help="Weights: .safetensors, or tensors in .pt or .pth.")
@click.option("--data", metavar="SPEC", help="Images for the scales of int8: `digits`, an .npz file, or a folder.")
@click.option(
    "--inside",
    default="all",
    show_default=True,
    metavar="LAYERS",
    help="`all`, `none`, `last:K`, or names and globs with commas between. Less is faster and leaks more.",
)
@click.option(
    "--slice",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="Cut layers that do not fit, or refuse them.",
)
@click.option(
    "--budget",
    type=options.BUDGET,
    default="8MiB",
    show_default=True,
    metavar="SIZE",
    help="Inside memory that may be used, or `none` for no limit. Left out beside --board: all that the board has.",
)
@click.option(
    "--board",
    metavar="BOARD",
    help="Plan for a board: its name, or a .toml file with its profile. It gives budget, size of slices, and cipher.",
)
@click.option("--bits", type=click.Choice(["8", "32"]), default="8", show_default=True, help="int8 or float32.")
@click.option(
    "--seed",
    type=options.SEED,
    metavar="N",
    default=0,
    show_default=True,
    help="Of the choice of images, and of random weights.",
)
@click.option(
    "--for",
    "devices",
    multiple=True,
    default=["local"],
    show_default=True,
    metavar="DEVICE",
    envvar="CLOISTER_PROTECT_FOR",
    help="Who may open it: `local` or FILE.pub; may be given repeatedly.",
)
@click.option("-o", "--out", type=options.FILE, metavar="FILE", help="Bundle to write.  [default: MODEL.cloister]")
@click.option("--input-shape", type=options.SHAPE, metavar="C,H,W", help="Of one image, where nothing else tells it.")
@click.option(
    "--classes", type=click.IntRange(2), metavar="K", help="Outputs of a zoo model, where nothing else tells it."
)
@options.force
@options.output_format
def protect(target: str, out: Path | None, devices: tuple[str, ...], force: bool, format: str, **choices: Any) -> None:
    """Compile TARGET into a bundle whose inside is sealed.

    TARGET is `zoo:NAME`, `package.module:function` (which returns an nn.Module or a cloister.Target), or a .pt2 file of
    `torch.export.save`. The scales of int8 come from the images that the weights were trained on, if the weights tell,
    otherwise from the training part of the data.
    """
    out = out or Path(_stem(target, choices["weights"]) + ".cloister")
    check_output(out, force=force)
    if choices["board"] is not None:
        load_board(choices["board"])
    check_devices(devices)
    from cloister.protection import protect as run_protect

    loaded, dataset = _load(target, choices)
    with ui.progress() as progress:
        protected = run_protect(
            loaded,
            out,
            inside=choices["inside"],
            slicing=cast(Slicing, choices["slice"]),
            budget_bytes=_budget(choices),
            board=choices["board"],
            bits=8 if choices["bits"] == "8" else 32,
            calibration=_calibration(loaded, dataset, choices["seed"]),
            seed=choices["seed"],
            devices=devices,
            force=force,
            progress=progress,
        )
    _print(protected, devices, choices["data"], format)


def _budget(choices: dict[str, Any]) -> int | None:
    """The budget that is asked for; with a board and none asked for None, which stands for all that the board has."""
    source = click.get_current_context().get_parameter_source("budget")
    if choices["board"] is not None and source == click.core.ParameterSource.DEFAULT:
        return None
    size: int | None = choices["budget"]
    return size


def _stem(target: str, weights: Path | None) -> str:
    """A file name for the bundle: that of the weights, or of the model."""
    if weights is not None:
        return weights.stem
    name = Path(target).stem if target.endswith(".pt2") else target.removeprefix("zoo:")
    return re.sub(r"\W+", "-", name)


def _load(target: str, choices: dict[str, Any]) -> tuple[Target, Dataset | None]:
    from cloister.data import load_dataset
    from cloister.target import load_target

    dataset = load_dataset(choices["data"]) if choices["data"] else None
    shape, n_classes = choices["input_shape"], choices["classes"]
    if dataset is not None:
        shape, n_classes = shape or dataset.input_shape, n_classes or dataset.n_classes
    loaded = load_target(
        target, weights=choices["weights"], input_shape=shape, n_classes=n_classes, seed=choices["seed"]
    )
    if choices["weights"] is None and target.startswith("zoo:"):
        ui.say(f"`{target}` without --weights has random weights: good for measuring time and memory, no more")
    return loaded, dataset


def _calibration(target: Target, dataset: Dataset | None, seed: int) -> npt.NDArray[np.float32] | None:
    """The images that `protect` would draw from all members, without making floats of all the others."""
    if dataset is None:
        return None
    import numpy as np

    from cloister.data import split
    from cloister.protection import N_CALIBRATION

    indices = np.arange(dataset.n_train)
    known = target.checkpoint
    if known is not None and known.data_sha256 == dataset.sha256:
        indices, _ = split(dataset.n_train, n_members=known.n_members, seed=known.seed)
    elif known is not None:
        ui.say(f"the weights were trained on other data than `{dataset.name}`: the scales come from its training part")
    order = np.random.default_rng(seed).permutation(len(indices))[:N_CALIBRATION]
    return dataset.images(indices[np.sort(order)])


def _print(protected: Protected, devices: tuple[str, ...], data: str | None, format: str) -> None:
    manifest = protected.manifest
    plan, crossing, n_bytes = manifest.plan, crossings(manifest), protected.path.stat().st_size
    if format == "json":
        document = ProtectDocument(
            path=str(protected.path),
            file_bytes=n_bytes,
            model=manifest.model,
            suite=manifest.suite,
            devices=devices,
            plan=plan,
            crossings=crossing,
        )
        ui.json(document)
        return
    plans.show_plan(f"Plan for {manifest.model}, {'int8' if plan.bits == 8 else 'float32'}", plan)
    plans.show_crossings(crossing)
    rows = [("bundle", f"{protected.path}, {format_bytes(n_bytes)}"), ("inside memory", plans.budget_text(plan))]
    inside = [
        ("board", plans.board_text(plan.board)),
        ("side by side", plans.lanes_text(plan)),
        ("cipher", manifest.suite),
        ("opens in", ", ".join(devices)),
    ]
    ui.fields("", [*rows, *inside] if crossing else rows)
    source = ["--data", data] if data else ["--input", "images.npy", "-o", "outputs.npy"]
    ui.next_steps("Next", [["cloister", "run", str(protected.path), *source, *_enclave(devices, plan)]])


def _enclave(devices: tuple[str, ...], plan: Plan) -> list[str]:
    """The option that names an enclave which opens the bundle, unless it is the local one."""
    if "local" in devices or not plan.inside_bytes:
        return []
    named = [name for name in devices if is_enclave(name)]
    board = load_boards().get(plan.board.name) if plan.board else None
    if named or board:
        return ["--enclave", named[0] if named else "emulator" if board and board.emulated else "optee"]
    return []
