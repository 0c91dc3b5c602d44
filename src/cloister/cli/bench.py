"""`cloister bench`: what protection costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from click.core import ParameterSource

from cloister.cli import options, ui
from cloister.outputs import check_output, write_whole
from cloister.units import format_bytes

if TYPE_CHECKING:
    from cloister.bench.compare import BenchDocument, BenchRow
    from cloister.bench.counts import CountDocument, CountRow

__all__ = ["bench"]

#: Options that say something only where time is measured, and only where instructions are counted.
_OF_TIMES = ("engines", "against", "insides", "batches", "rounds", "figure")
_OF_COUNTS = ("repeats",)


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    envvar="CLOISTER_BENCH_ENGINE",
    metavar="NAME",
    help="Measure this engine, such as openvino-int8, cloister-inside@1MiB or cloister-inside[last:3]; may be given "
    "several times.  [default: all]",
)
@click.option(
    "--against",
    multiple=True,
    metavar="NAME",
    default=("cloister-outside", "fastest"),
    show_default=True,
    help="Engine to compare with; `fastest`: the fastest of the others' engines; may be given several times.",
)
@click.option(
    "--budget",
    "budgets",
    type=options.BUDGET,
    multiple=True,
    envvar="CLOISTER_BENCH_BUDGET",
    metavar="SIZE",
    default=("none", "1MiB", "256KiB"),
    show_default=True,
    help="Inside memory for all layers, such as 1MiB, or `none` for all that there is; may be given several times.",
)
@click.option(
    "--inside",
    "insides",
    multiple=True,
    envvar="CLOISTER_BENCH_INSIDE",
    metavar="last:K",
    help="Measure with these layers inside, too; may be given several times.",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1, 64),
    multiple=True,
    envvar="CLOISTER_BENCH_BATCH",
    metavar="N",
    default=(1,),
    show_default=True,
    help="Images in a run; may be given several times.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    metavar="N",
    default=15,
    show_default=True,
    help="In each every engine has a turn; ratios are medians over them.",
)
@click.option(
    "--enclave",
    type=click.Choice(["local", "emulator"]),
    default="local",
    show_default=True,
    help="Where the inside runs; `emulator`, OP-TEE in QEMU, is brought up for --count, and ended.",
)
@click.option(
    "--count",
    type=click.Choice(["instructions"]),
    help="Count instead of measuring time: in the emulator, whose time would mean nothing.",
)
@click.option(
    "--repeats", type=click.IntRange(1), metavar="N", default=5, show_default=True, help="Counts to take the median of."
)
@click.option("-o", "--out", type=options.FILE, metavar="OUT.json", help="Write the result as JSON, too.")
@click.option("--figure", type=options.FILE, metavar="OUT.svg", help="Draw the ratios; needs matplotlib.")
@options.force
@options.output_format
@click.pass_context
def bench(
    context: click.Context,
    models: tuple[str, ...],
    engines: tuple[str, ...],
    against: tuple[str, ...],
    budgets: tuple[int | None, ...],
    insides: tuple[str, ...],
    batches: tuple[int, ...],
    rounds: int,
    enclave: str,
    count: str | None,
    repeats: int,
    out: Path | None,
    figure: Path | None,
    force: bool,
    format: str,
) -> None:
    """Measure what models of the zoo take in Cloister and in other engines, side by side; all if none is named.

    Each engine has one thread. Results are ratios of neighbouring runs, never times: these depend on what else the
    machine does. `mobilenet_v2` and `resnet18`, for 224x224, can be named, too.

    With --enclave emulator --count instructions: the instructions that int8 models of the zoo take, everything inside
    against nothing inside, with the parts: crossing, unsealing, computing.
    """
    _check_mode(context, enclave, count)
    for path in (out, figure):
        if path is not None:
            check_output(path, force=force)
    document: BenchDocument | CountDocument
    if count:
        document = _count(models, budgets, repeats)
    else:
        explicit = context.get_parameter_source("budgets") is not ParameterSource.DEFAULT
        names = _engine_names(engines, budgets if explicit or not engines else (), insides)
        document = _compare(models, names, against, batches, rounds, figure, force)
    if out is not None:
        write_whole(out, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n", force=force)
    if format == "json":
        ui.json(document)
    elif count:
        _show_counts(document)  # type: ignore[arg-type]
    else:
        _show_ratios(document)  # type: ignore[arg-type]


def _check_mode(context: click.Context, enclave: str, count: str | None) -> None:
    """Time is measured on this machine, instructions are counted in the emulator."""
    if (enclave == "emulator") != (count is not None):
        raise click.UsageError("expected --enclave emulator and --count instructions together, or neither", context)
    of_others = _OF_TIMES if count else _OF_COUNTS
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name)) is not ParameterSource.DEFAULT
        if parameter.name in of_others and given:
            where = "beside --count" if count else "without --count"
            raise click.UsageError(f"{parameter.opts[-1]} says nothing {where}", context)


# --- Time ----------------------------------------------------------------------------------------------------------


def _engine_names(engines: tuple[str, ...], budgets: tuple[int | None, ...], insides: tuple[str, ...]) -> list[str]:
    from cloister.bench.engines import PEERS, OwnEngine

    names = list(engines)
    if not engines:
        names += [peer.name for peer in PEERS]
        names += [OwnEngine.make(inside, bits).name for bits in (8, 32) for inside in ("none", "all")]
    names += [OwnEngine.make("all", 8, budget).name for budget in budgets]
    return names + [OwnEngine.make(inside).name for inside in insides]


def _compare(
    models: tuple[str, ...],
    names: list[str],
    against: tuple[str, ...],
    batches: tuple[int, ...],
    rounds: int,
    figure: Path | None,
    force: bool,
) -> BenchDocument:
    from cloister import zoo
    from cloister.bench.compare import compare
    from cloister.bench.figure import check_figure, draw

    if figure is not None:
        check_figure()
    with ui.progress() as progress:
        document = compare(
            models or zoo.NAMES, names, against=against, batches=batches, rounds=rounds, progress=progress
        )
    if figure is not None:
        write_whole(figure, draw(document), force=force)
    return document


def _show_ratios(document: BenchDocument) -> None:
    title = f"Time, one thread, {document.rounds} rounds; inside: the {document.enclave} enclave ({document.isolation})"
    columns = ["model", "images", "engine", "against", "ratio", "95 % between", "as torch"]
    ui.table(title, columns, [_ratio_cells(row) for row in document.rows], right="images,ratio,as torch")
    ui.say("ratio: time of the engine / time of the other; as torch: correlation of its logits with torch's in float32")
    if document.missing:
        rows = [
            (one.model or "all", "all" if one.batch is None else str(one.batch), one.engine, one.reason)
            for one in document.missing
        ]
        ui.table("Not measured", ["model", "images", "engine", "why"], rows)


def _ratio_cells(row: BenchRow) -> tuple[str, ...]:
    return (
        row.model,
        str(row.batch),
        row.engine,
        row.against,
        f"{row.ratio:.3f}",
        f"{row.ratio_low:.3f} and {row.ratio_high:.3f}",
        f"{row.agreement:.3f}",
    )


# --- Instructions --------------------------------------------------------------------------------------------------


def _count(models: tuple[str, ...], budgets: tuple[int | None, ...], repeats: int) -> CountDocument:
    from cloister import zoo
    from cloister.bench.counts import count_instructions

    for model in models:
        zoo.check_name(model)
    with ui.progress() as progress:
        return count_instructions(models or zoo.NAMES, budgets=budgets, repeats=repeats, progress=progress)


def _show_counts(document: CountDocument) -> None:
    columns = ["model", "inside", "budget", "images", "all", "crossing", "unsealing", "computing"]
    columns += ["a byte", "a MAC", "ratio"]
    title = f"Millions of instructions for an image on {document.board}, {document.march} ({document.isolation})"
    ui.table(title, columns, [_count_cells(row) for row in document.rows], right=",".join(columns[2:]))
    ui.say(
        "a byte: instructions to open a byte of a slice; a MAC: to compute a multiply-add; ratio: to everything outside"
    )
    if document.missing:
        rows = [(one.model, _budget(one.budget_bytes), one.reason) for one in document.missing]
        ui.table("Not counted", ["model", "budget", "why"], rows)


def _budget(n_bytes: int | None) -> str:
    return "board" if n_bytes is None else format_bytes(n_bytes)


def _count_cells(row: CountRow) -> tuple[str, ...]:
    return (
        row.model,
        row.inside,
        "" if row.inside == "none" else _budget(row.budget_bytes),
        str(row.images),
        *(f"{n / 1e6:.2f}" for n in (row.instructions, row.crossing, row.unsealing, row.compute)),
        "" if row.unsealing_per_byte is None else f"{row.unsealing_per_byte:.1f}",
        f"{row.compute_per_multiply_add:.3f}",
        f"{row.against_outside:.3f}",
    )
