"""`cloister demo`: the whole way with a small model, measured."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cloister.cli import options, ui
from cloister.errors import EnclaveError, UserError
from cloister.outputs import refuse_existing
from cloister.units import format_bytes

if TYPE_CHECKING:
    from cloister.demo import DemoResult

__all__ = ["demo"]


@click.command()
@click.option(
    "--seed", type=options.SEED, metavar="N", default=0, show_default=True, help="Of weights, members and calibration."
)
@click.option("-o", "--out", type=options.FILE, metavar="DIR", help="Keep weights, bundles and result.json there.")
@options.force
@options.output_format
def demo(seed: int, out: Path | None, force: bool, format: str) -> None:
    """Train, protect and run a small model, all measured.

    The data are scikit-learn's 8 x 8 digits; nothing is downloaded. It takes less than a minute and ends with what it
    costs, what an outsider sees, and the commands for a model of your own.
    """
    if out is not None:
        refuse_existing(out, force=force)
    from cloister.demo import run_demo

    with _folder(out) as folder, ui.progress() as progress:
        result = run_demo(folder, seed=seed, force=force, progress=progress)
        if out is not None:
            (out / "result.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    if format == "json":
        ui.json(result)
    else:
        _show(result, out)
    if not result.bit_equal or result.inside_peak_bytes > result.budget_bytes:
        raise EnclaveError(
            "the enclave gave other bits than the same program outside, or took more memory than its budget",
            "`cloister doctor` checks this machine",
        )


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The folder that is asked for, or one that goes away."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="cloister-demo-") as name:
            yield Path(name)
    else:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder `{out}` cannot be made: {error.strerror}") from error
        yield out


def _show(result: DemoResult, out: Path | None) -> None:
    _show_setting(result)
    _show_accuracy(result)
    _show_cost(result)
    _show_view(result)
    if out is not None:
        ui.fields("", [("kept in", str(out))])
    commands = [
        "cloister train zoo:vgg7 --data DATA -o model.safetensors",
        "cloister protect zoo:vgg7 --weights model.safetensors --data DATA -o model.cloister",
        "cloister run model.cloister --data DATA",
        "cloister inspect model.cloister",
    ]
    ui.next_steps(
        "Next, with data of your own: an .npz file, or a folder of idx files or images",
        [command.split() for command in commands],
    )


def _show_setting(result: DemoResult) -> None:
    rows = [
        ("model", f"{result.model}, trained on {ui.number(result.n_members)} images of {result.data}"),
        ("inside", ", ".join(result.inside_layers)),
        ("outside", ", ".join(result.outside_layers)),
        (
            "slices",
            f"{result.n_slices}, of which {result.n_streamed} stream: opened one at a time, when their turn comes",
        ),
    ]
    ui.fields("Protected", rows)


def _show_accuracy(result: DemoResult) -> None:
    accuracy, agreement = result.accuracy, result.agreement
    bits = "the same bits" if result.bit_equal else "OTHER BITS"
    rows = [
        ("float32, PyTorch", ui.percent(accuracy.float32), ""),
        ("int8, nothing inside", ui.percent(accuracy.int8), f"{ui.percent(agreement.int8_float32)} as float32"),
        ("int8, protected", ui.percent(accuracy.protected), f"{bits} as with nothing inside"),
    ]
    columns = ["", "accuracy", "same answers"]
    ui.table(f"Accuracy on {ui.number(result.n_test)} test images", columns, rows, right="accuracy")


def _show_cost(result: DemoResult) -> None:
    peak, budget = format_bytes(result.inside_peak_bytes), format_bytes(result.budget_bytes)
    rows = [
        (
            "inside memory",
            f"peak {peak} of a budget of {budget}; the weights inside have {format_bytes(result.inside_weight_bytes)}",
        ),
        ("time", f"{result.time_ratio:.2f} times that of nothing inside (median of {result.n_timings} pairs of runs)"),
        ("crosses an image", f"{format_bytes(result.bytes_in)} in, {format_bytes(result.bytes_out)} out"),
    ]
    ui.fields("Cost", rows)


def _show_view(result: DemoResult) -> None:
    from cloister.cli.plans import describe_crossing

    rows = [
        ("sees", "the architecture"),
        ("", f"the weights outside: {', '.join(result.outside_layers)}"),
        *(("", describe_crossing(crossing)) for crossing in result.crossings),
        ("", f"{format_bytes(result.sealed_bytes)} of ciphertext"),
        ("does not see", "the weights inside, and what is computed between them"),
    ]
    ui.fields("An outsider", rows)
    ui.fields("", [("note", "the local enclave isolates a process, not hardware: root can look into it")])
