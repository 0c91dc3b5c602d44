"""`cloister measure`: how much each layer exposes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from cloister.cli import options, ui
from cloister.outputs import check_output, write_whole

if TYPE_CHECKING:
    from cloister.exposure.document import Comparison, Exposure, Interval, LayerExposure, Ratio, Reading
    from cloister.target import Target

__all__ = ["measure", "remove_finished"]

_BAR_LENGTH = 10


@click.command()
@click.argument("target")
@click.option(
    "--weights", type=options.FILE, metavar="FILE", help="Weights of `cloister train`, which tell the members."
)
@click.option("--data", metavar="SPEC", help="What they were trained on: `digits`, an .npz file, or a folder.")
@click.option(
    "--epochs", type=click.IntRange(1), metavar="N", default=20, show_default=True, help="Of each fine-tuning."
)
@click.option(
    "--repeats", type=click.IntRange(1), metavar="N", default=3, show_default=True, help="Of each fine-tuning."
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    default=1e-3,
    show_default=True,
    help="Learning rate of Adam.",
)
@click.option(
    "--batch-size", type=click.IntRange(2), metavar="N", default=100, show_default=True, help="Images in one step."
)
@click.option(
    "--samples", type=click.IntRange(4), metavar="N", help="Members and non-members to take.  [default: all of both]"
)
@click.option("--seed", type=options.SEED, metavar="N", default=0, show_default=True, help="Of samples and orders.")
@click.option(
    "--group",
    "groups",
    multiple=True,
    envvar="CLOISTER_MEASURE_GROUP",
    metavar="NAME=GLOB,…",
    help="Measure these parameters as one layer, and only groups; may be given several times.  [default: each layer]",
)
@click.option(
    "--control",
    "controls",
    type=click.Choice(["reinitialised", "unseen-base", "none"]),
    multiple=True,
    envvar="CLOISTER_MEASURE_CONTROL",
    default=("reinitialised", "unseen-base"),
    show_default=True,
    help="Controls to do; each takes as long as the measure itself; may be given several times.",
)
@click.option(
    "--control-base",
    type=options.FILE,
    metavar="FILE",
    help="Weights of the unseen base.  [default: trained on non-members that are not used otherwise]",
)
@click.option(
    "--state",
    type=options.FILE,
    metavar="FOLDER",
    help="Where finished fine-tunings are kept.  [default: OUT.resume, removed at the end]",
)
@click.option("-o", "--out", type=options.FILE, metavar="OUT.json", help="Write the result as JSON, too.")
@click.option("--figure", type=options.FILE, metavar="OUT.svg", help="Draw the exposures; needs matplotlib.")
@options.force
@options.output_format
def measure(
    target: str, out: Path | None, figure: Path | None, state: Path | None, force: bool, format: str, **choices: Any
) -> None:
    """Measure how much of its members each layer of TARGET exposes, as Mo et al. (CCS 2019) define it.

    TARGET is `zoo:NAME` with weights and data of `cloister train`, or `package.module:function` that returns a
    cloister.Target with members and non-members. Exposure is what a layer's own fine-tuning on members and non-members
    takes away of the gap between their losses. The controls say what that is worth. Beside it stands memorisation,
    which they do not score: how much more members lose than non-members when the layer is replaced. With -o or --state
    an interrupted measure goes on where it was when the same command is given again.
    """
    for path in (out, figure):
        if path is not None:
            check_output(path, force=force)
    groups = _groups(choices["groups"])
    kept = state or (out.with_name(f"{out.name}.resume") if out is not None else None)
    if figure is not None:
        from cloister.exposure.figure import check_figure

        check_figure()
    loaded, control = _load(target, choices)
    document = _measure(loaded, control, groups, kept, choices)
    if out is not None:
        write_whole(out, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n", force=force)
    if figure is not None:
        from cloister.exposure.figure import draw

        write_whole(figure, draw(document), force=force)
    if kept is not None and state is None:
        remove_finished(kept)
    if format == "json":
        ui.json(document)
    else:
        _show(document)


def _groups(texts: tuple[str, ...]) -> dict[str, list[str]] | None:
    groups = {}
    for text in texts:
        name, equals, globs = text.partition("=")
        if not (name and equals and globs) or name in groups:
            raise click.UsageError(
                f"expected each --group as NAME=GLOB,… with a name of its own, but got `{text}`",
                click.get_current_context(),
            )
        groups[name] = globs.split(",")
    return groups or None


def _load(target: str, choices: dict[str, Any]) -> tuple[Target, Target | None]:
    """The target and the control base, with what they were trained on where that is known."""
    from cloister.data import load_dataset
    from cloister.target import load_target, with_members

    dataset = load_dataset(choices["data"]) if choices["data"] else None
    known_by_data = dataset if choices["weights"] is None else None  # weights tell it themselves
    loaded = load_target(
        target,
        weights=choices["weights"],
        input_shape=known_by_data.input_shape if known_by_data else None,
        n_classes=known_by_data.n_classes if known_by_data else None,
        seed=choices["seed"],
    )
    if dataset is not None:
        loaded = with_members(loaded, dataset)
    if choices["control_base"] is None:
        return loaded, None
    control = load_target(
        target, weights=choices["control_base"], input_shape=tuple(loaded.input_shape), n_classes=loaded.n_classes
    )
    known = control.checkpoint
    if dataset is not None and known is not None and known.data_sha256 == dataset.sha256:
        control = with_members(control, dataset)
    return loaded, control


def _measure(
    target: Target,
    control: Target | None,
    groups: dict[str, list[str]] | None,
    state: Path | None,
    choices: dict[str, Any],
) -> Exposure:
    from cloister.exposure.measure import measure as run_measure

    if state is not None and state.is_dir():
        ui.say(f"found `{state}`: finished fine-tunings are taken from there")
    try:
        with ui.progress() as progress:
            return run_measure(
                target,
                epochs=choices["epochs"],
                repeats=choices["repeats"],
                lr=choices["lr"],
                batch_size=choices["batch_size"],
                seed=choices["seed"],
                n_samples=choices["samples"],
                groups=groups,
                controls=[name for name in choices["controls"] if name != "none"],
                control=control,
                state=state,
                progress=progress,
            )
    except KeyboardInterrupt:
        if state is not None:
            ui.say("the same command goes on with the fine-tunings that were finished")
        raise


def remove_finished(folder: Path) -> None:
    """Remove finished work of a state folder; what else lies there stays."""
    for pattern in ("*.json", "control-*.safetensors", "base-*.safetensors"):
        for path in folder.glob(pattern):
            path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _show(document: Exposure) -> None:
    columns = ["layer", "parameters", "M_p", "M_r", "exposure", "95 %", "0 to 1"]
    title = f"Exposure of {document.target}, {document.epochs} epochs, {document.repeats} repeats"
    ui.table(title, columns, [_cells(layer) for layer in document.layers], right=",".join(columns[1:-1]))
    ui.say(
        "M_p, M_r: loss on non-members less that on members, with the layer fine-tuned on members, or on both; "
        "exposure: (M_p - M_r) / M_p"
    )
    columns = ["layer", "by accuracy", "equal steps", "weights anew", "unseen base"]
    ui.table(
        "The same otherwise", columns, [_other_cells(layer) for layer in document.layers], right=",".join(columns[1:])
    )
    ui.say(
        "equal steps: M_r after as many steps as M_p; weights anew: the layer's own drawn anew before; unseen base: in "
        "one that never saw the members"
    )
    columns = ["layer", "memorisation", "95 %", "weights anew", "unseen base", "0 to 1"]
    ui.table("Memorisation", columns, [_held_cells(layer) for layer in document.layers], right=",".join(columns[1:-1]))
    ui.say(
        "memorisation: how much more members lose than non-members when the layer's weights are replaced by some that "
        "saw neither; 2 AUC - 1"
    )
    rows = [("target", _reading_text(document.base))]
    if document.unseen_base is not None:
        rows.append(("unseen base", _reading_text(document.unseen_base)))
    rows.append(("samples", f"{document.n_members:,} members, {document.n_nonmembers:,} non-members"))
    rows.append(("order", ", ".join(document.ranking.layers) or "none: exposure is undefined in every layer"))
    rows.append(("by memorisation", ", ".join(document.memorisation_ranking.layers)))
    rows += [("finding", text) for text in document.findings]
    rows += [("undefined", f"{layer.name}: {why}") for layer in document.layers if (why := _ratio(layer).undefined)]
    rows += [("warning", text) for text in document.warnings]
    ui.fields("", rows)


def _ratio(layer: LayerExposure) -> Ratio:
    return layer.measured.by_loss


def _reading_text(reading: Reading) -> str:
    return (
        f"loss {reading.loss_members:.3f} on members, {reading.loss_nonmembers:.3f} on non-members; "
        f"accuracy {ui.percent(reading.accuracy_members)}, {ui.percent(reading.accuracy_nonmembers)}"
    )


def _cells(layer: LayerExposure) -> tuple[str, ...]:
    found = _ratio(layer)
    low = found.exposure.low if found.exposure else None
    return (
        layer.name,
        ui.number(layer.n_parameters),
        f"{found.p.mean:.3f}",
        f"{found.r.mean:.3f}",
        _value(found),
        "" if low is None or found.exposure is None else f"±{found.exposure.mean - low:.2f}",
        _bar(found.exposure),
    )


def _other_cells(layer: LayerExposure) -> tuple[str, ...]:
    return (
        layer.name,
        _value(layer.measured.by_accuracy),
        _value(layer.equal_steps.by_loss),
        _of_control(layer.reinitialised),
        _of_control(layer.unseen_base),
    )


def _held_cells(layer: LayerExposure) -> tuple[str, ...]:
    found = layer.memorisation
    low, high = found.measured.low, found.measured.high
    return (
        layer.name,
        f"{found.measured.mean:.2f}",
        "" if low is None or high is None else f"{low:.2f} to {high:.2f}",
        _of_control_held(found.reinitialised),
        _of_control_held(found.unseen_base),
        _bar(found.measured),
    )


def _of_control_held(found: Interval | None) -> str:
    return "left out" if found is None else f"{found.mean:.2f}"


def _of_control(comparison: Comparison | None) -> str:
    return "left out" if comparison is None else _value(comparison.by_loss)


def _value(ratio: Ratio) -> str:
    return "undefined" if ratio.exposure is None else f"{ratio.exposure.mean:.2f}"


def _bar(found: Interval | None) -> str:
    """A value as a length; what lies outside [0, 1] ends at its edge."""
    share = 0.0 if found is None else min(max(found.mean, 0.0), 1.0)
    return "#" * round(share * _BAR_LENGTH)
