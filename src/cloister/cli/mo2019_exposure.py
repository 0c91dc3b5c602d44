"""`cloister reproduce mo2019-exposure`: the figure of exposure per layer, done again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from cloister.cli import options, ui
from cloister.cli.measure import remove_finished
from cloister.outputs import check_output, write_whole
from cloister.reproduce.mo2019_paper import LAST_CONVOLUTION, PAPER

if TYPE_CHECKING:
    from cloister.exposure.document import Comparison, Interval, LayerExposure, Memorisation, Reading
    from cloister.reproduce.mo2019_exposure import Base, ExposureDocument, SetExposure
    from cloister.reproduce.mo2019_paper import Correlation, Statement

__all__ = ["mo2019_exposure"]

_SAMPLES, _SEEDS = 10_000, 3
_QUICK_SAMPLES, _QUICK_SEEDS = 500, 2


@click.command("mo2019-exposure")
@click.option(
    "--data",
    type=options.FILE,
    metavar="FOLDER",
    help="Folder with MNIST, FashionMNIST (idx files) and cifar10.npz.  [default: $CLOISTER_DATA]",
)
@click.option(
    "--only",
    type=click.Choice(list(PAPER)),
    multiple=True,
    help="Of these data sets alone; may be given several times. Processes with sets of their own may share a --state.",
)
@click.option(
    "--quick", is_flag=True, help="A quarter of the epochs, 500 samples, 2 seeds: some minutes, for a first look."
)
@click.option(
    "--samples",
    type=click.IntRange(2),
    metavar="N",
    help=f"Members, as many non-members, and as many for the unseen base.  [default: {_SAMPLES}]",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    metavar="N",
    help=f"Of samples, base and fine-tunings, for each data set.  [default: {_SEEDS}]",
)
@click.option(
    "--controls",
    type=click.IntRange(0),
    metavar="N",
    default=1,
    show_default=True,
    help="Seeds with controls, which take three times as long; with any, widths are reversed on two sets, too.",
)
@click.option(
    "--state",
    type=options.FILE,
    metavar="FOLDER",
    help="Where finished work is kept.  [default: OUT.resume, removed at the end]",
)
@click.option("-o", "--out", type=options.FILE, metavar="OUT.json", help="Write the result as JSON, too.")
@click.option("--figure", type=options.FILE, metavar="OUT.svg", help="Draw it; needs matplotlib.")
@options.force
@options.output_format
def mo2019_exposure(
    state: Path | None, out: Path | None, figure: Path | None, force: bool, format: str, **choices: Any
) -> None:
    """Exposure of each layer of VGG-7 on three data sets: Figure 2 of Mo et al. (CCS 2019).

    Epochs are the paper's (20, 40, 60); optimiser, learning rate and sizes are not in it. Beside our values stand those
    that it states, which of its statements hold, and the controls. It takes hours; with -o or --state the same command
    goes on after an interruption.
    """
    for path in (out, figure):
        if path is not None:
            check_output(path, force=force)
    if figure is not None:
        from cloister.exposure.figure import check_figure

        check_figure()
    kept = state or (out.with_name(f"{out.name}.resume") if out is not None else None)
    document = _reproduce(kept, choices)
    if out is not None:
        write_whole(out, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n", force=force)
    if figure is not None:
        from cloister.reproduce.mo2019_figure import draw

        write_whole(figure, draw(document), force=force)
    if kept is not None and state is None:
        remove_finished(kept)
    if format == "json":
        ui.json(document)
    else:
        _show(document)


def _reproduce(state: Path | None, choices: dict[str, Any]) -> ExposureDocument:
    from cloister.reproduce.mo2019_exposure import QUICK_EPOCHS, reproduce

    if state is not None and state.is_dir():
        ui.say(f"found `{state}`: finished work is taken from there")
    quick = choices["quick"]
    try:
        with ui.progress() as progress:
            return reproduce(
                choices["data"],
                sets=choices["only"] or tuple(PAPER),
                n_samples=choices["samples"] or (_QUICK_SAMPLES if quick else _SAMPLES),
                n_seeds=choices["seeds"] or (_QUICK_SEEDS if quick else _SEEDS),
                n_controlled=choices["controls"],
                epochs=QUICK_EPOCHS if quick else None,
                state=state,
                progress=progress,
            )
    except KeyboardInterrupt:
        if state is not None:
            ui.say("the same command goes on with what was finished")
        raise


# --- what is printed ---


def _show(document: ExposureDocument) -> None:
    for one in document.sets:
        _show_set(one)
    ui.say(
        "exposure: (M_p - M_r) / M_p by loss, with its 95 % interval over seeds; accuracy: the same by accuracy; "
        "steps: M_r after as many steps as M_p; anew: the layer's weights drawn anew before; unseen: in a base that "
        "never saw the members"
    )
    for one in document.sets:
        _show_memorisation(one)
    ui.say(
        "memorisation: 2 AUC - 1 of what members and non-members lose with the layer, with its 95 % interval over "
        "seeds; the paper does not have it"
    )
    for one in document.reversed:
        _show_reversed(one, next(own for own in document.sets if own.data == one.data))
    rows = [(statement.claim, statement.data or "all", *_verdict(statement)) for statement in document.statements]
    ui.table("What the paper states", ["statement", "data", "holds", "seeds", "found"], rows)
    ui.fields("", list(_fields(document)))


def _show_set(one: SetExposure) -> None:
    columns = ["layer", "parameters", "M_p", "M_r", "exposure", "95 %", "paper"]
    columns += ["accuracy", "steps", "anew", "unseen"]
    title = f"Exposure of VGG-7 on {one.data}, {one.epochs} epochs, {_seeds(len(one.bases))}"
    ui.table(title, columns, [_cells(one.data, layer) for layer in one.layers], right=",".join(columns[1:]))


def _show_memorisation(one: SetExposure) -> None:
    columns = ["layer", "parameters", "memorisation", "95 %", "anew", "unseen"]
    rows = [
        (
            layer.name,
            ui.number(layer.n_parameters),
            f"{(found := layer.memorisation).measured.mean:.2f}",
            "" if found.measured.low is None else f"±{found.measured.mean - found.measured.low:.2f}",
            *("left out" if control is None else f"{control.mean:.2f}" for control in _controls(found)),
        )
        for layer in one.layers
    ]
    ui.table(
        f"Memorisation of VGG-7 on {one.data}, {_seeds(len(one.bases))}", columns, rows, right=",".join(columns[1:])
    )


def _controls(found: Memorisation) -> tuple[Interval | None, Interval | None]:
    return found.reinitialised, found.unseen_base


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _cells(data: str, layer: LayerExposure) -> tuple[str, ...]:
    found = layer.measured.by_loss
    low = found.exposure.low if found.exposure else None
    return (
        layer.name,
        ui.number(layer.n_parameters),
        f"{found.p.mean:.3f}",
        f"{found.r.mean:.3f}",
        _value(layer.measured),
        "" if low is None or found.exposure is None else f"±{found.exposure.mean - low:.2f}",
        f"{PAPER[data].last_convolution:.2f}" if layer.name == LAST_CONVOLUTION else "",
        _value(layer.measured, by="by_accuracy"),
        _value(layer.equal_steps),
        _value(layer.reinitialised),
        _value(layer.unseen_base),
    )


def _show_reversed(one: SetExposure, straight: SetExposure) -> None:
    columns = ["layer", "parameters", "exposure", "memorisation", "parameters ", "exposure ", "memorisation "]
    rows = [
        (a.name, *(cell for layer in (b, a) for cell in _brief(layer)))
        for a, b in zip(straight.layers, one.layers, strict=True)
    ]
    title = f"Widths reversed on {one.data}, {_seeds(len(one.bases))}; then the paper's"
    ui.table(title, columns, rows, right=",".join(columns[1:]))


def _brief(layer: LayerExposure) -> tuple[str, ...]:
    return ui.number(layer.n_parameters), _value(layer.measured), f"{layer.memorisation.measured.mean:.2f}"


def _value(comparison: Comparison | None, *, by: str = "by_loss") -> str:
    if comparison is None:
        return "left out"
    found = getattr(comparison, by).exposure
    return "undefined" if found is None else f"{found.mean:.2f}"


def _verdict(statement: Statement) -> tuple[str, str, str]:
    holds = {True: "yes", False: "no", None: "unknown"}[statement.holds]
    seeds = "" if statement.seeds is None else f"{statement.seeds} of {statement.n_seeds}"
    return holds, seeds, statement.found


def _fields(document: ExposureDocument) -> Iterator[tuple[str, str]]:
    yield "samples", f"{document.n_samples:,} in S, T and U each; the paper splits the whole training set into S and T"
    yield "base", f"{document.base_epochs} epochs of Adam at {document.learning_rate:g}, {document.precision}"
    for one in document.sets:
        yield from ((f"{one.data}, seed {base.seed}", _accuracies(base)) for base in one.bases)
    for one in document.sets:
        for what, found in (
            ("convolutions", one.described_order),
            ("convolutions and dense layer", one.described_order_with_dense),
        ):
            if found is not None:
                yield f"{one.data}, the paper's order", f"rank correlation of {what} {_correlation(found)}"
        yield from ((f"{one.data}, finding", text) for text in one.findings)
    for pair in document.agreement:
        yield f"{pair.one}, {pair.other}", f"rank correlation {_correlation(pair.correlation)}"
    for pair in document.memorisation_agreement:
        yield f"{pair.one}, {pair.other}, memorisation", f"rank correlation {_correlation(pair.correlation)}"
    for one in document.reversed:
        yield from ((f"{one.data}, reversed", text) for text in one.findings)
    yield from (("warning", text) for text in document.warnings)
    yield "time", ui.ago(document.seconds)


def _accuracies(base: Base) -> str:
    unseen = "" if base.unseen is None else f"; unseen base {_accuracy(base.unseen)}"
    return f"accuracy {_accuracy(base.trained_on_s)} on S, T{unseen}; {ui.ago(base.seconds)}"


def _accuracy(reading: Reading) -> str:
    return f"{ui.percent(reading.accuracy_members)}, {ui.percent(reading.accuracy_nonmembers)}"


def _correlation(found: Correlation) -> str:
    if found.rho is None or found.p is None:
        return f"undefined ({found.n} layers)"
    return f"{found.rho:.2f} (p {found.p:.2g}, {found.n} layers)"
