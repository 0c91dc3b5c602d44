"""`cloister run`: run a bundle and report what it took."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import click
import msgspec
import numpy as np
import numpy.typing as npt

from cloister.cli import options, plans, ui
from cloister.enclave.session import Session, Stats, load
from cloister.errors import InputError
from cloister.outputs import check_output, write_whole
from cloister.units import format_bytes

__all__ = ["run"]

#: Times that OP-TEE measured are shown from here on.
_OPTEE_CLOCK_SECONDS = 0.1
#: Images between two updates of the progress.
_BATCH = 64

_Floats = npt.NDArray[np.float32]
_Labels = npt.NDArray[np.int64]


class RunDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `cloister run -f json` prints; accuracy and labels are null without labelled data."""

    schema: Literal["cloister.run/1"] = "cloister.run/1"
    bundle: str
    model: str
    data: str
    n_images: int
    accuracy: float | None
    output: str | None
    stats: Stats


@click.command()
@click.argument("bundle", type=options.FILE)
@click.option("--data", metavar="SPEC", help="Run the test images of `digits`, an .npz file or a folder.")
@click.option(
    "--input",
    "images",
    type=options.FILE,
    metavar="X.npy",
    envvar="CLOISTER_RUN_INPUT",
    help="Run images: float32 (N, C, H, W) in [-1, 1].",
)
@click.option("-o", "--out", type=options.FILE, metavar="OUT.npy", help="Write the outputs: float32 (N, K).")
@options.enclave
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Run the first N images only.")
@options.force
@options.output_format
def run(
    bundle: Path,
    data: str | None,
    images: Path | None,
    out: Path | None,
    enclave: str,
    limit: int | None,
    force: bool,
    format: str,
) -> None:
    """Run BUNDLE: its outside here, its inside in the enclave.

    With labelled data it reports the accuracy; always what crossed, the inside memory, and where the time went.
    """
    if (data is None) == (images is None):
        raise click.UsageError("expected either --data or --input", click.get_current_context())
    if images is not None and out is None:
        raise click.UsageError("expected -o OUT.npy beside --input", click.get_current_context())
    if out is not None:
        check_output(out, force=force)
    x, labels = _load_images(data, images, limit)
    with load(bundle, enclave=enclave) as session:
        outputs = _run_batches(session, x)
        model, stats = session.bundle.manifest.model, session.stats
    if out is not None:
        write_whole(out, _npy(outputs), force=force)
    document = RunDocument(
        bundle=str(bundle),
        model=model,
        data=data or str(images),
        n_images=len(x),
        accuracy=None if labels is None else float((outputs.argmax(axis=-1) == labels).mean()),
        output=None if out is None else str(out),
        stats=stats,
    )
    if format == "json":
        ui.json(document)
    else:
        _show(document)


def _load_images(data: str | None, images: Path | None, limit: int | None) -> tuple[_Floats, _Labels | None]:
    """Images, and labels where there are any."""
    if images is not None:
        return _read_npy(images)[:limit], None
    from cloister.data import load_dataset

    dataset = load_dataset(str(data))
    chosen = slice(limit)
    return dataset.images(chosen, part="test"), dataset.labels(chosen, part="test")


def _read_npy(path: Path) -> _Floats:
    try:
        with path.open("rb") as file:
            array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, EOFError, MemoryError) as error:
        raise InputError(f"{path}: expected a .npy file of float32: {error}", "write it with numpy.save") from error
    if array.dtype != np.float32:
        raise InputError(f"{path}: expected float32, but got {array.dtype}", "convert it with x.astype(numpy.float32)")
    if array.ndim == 0:
        raise InputError(f"{path}: expected images, the first axis counting them, but got a single number")
    return array


def _npy(array: _Floats) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _run_batches(session: Session, x: _Floats) -> _Floats:
    """All images; an empty array still gives an output of the right shape."""
    outputs = []
    with ui.progress() as progress:
        for start in range(0, max(1, len(x)), _BATCH):
            outputs.append(session.run(x[start : start + _BATCH]))
            progress.update(min(start + _BATCH, len(x)), max(1, len(x)), "running")
    return np.concatenate(outputs)


def _show(document: RunDocument) -> None:
    stats = document.stats
    rows = [("images", f"{ui.number(document.n_images)} of {document.data}")]
    if document.accuracy is not None:
        rows.append(("accuracy", ui.percent(document.accuracy)))
    if document.output is not None:
        rows.append(("outputs", document.output))
    ui.fields(f"{document.model}, {document.bundle}", [*rows, *_inside_rows(stats)])
    if document.n_images:
        _show_times(stats, document.n_images)


def _inside_rows(stats: Stats) -> list[tuple[str, str]]:
    if stats.enclave is None:
        return [("enclave", "none: nothing is inside")]
    limit = "without a limit" if stats.budget_bytes is None else f"of {format_bytes(stats.budget_bytes)}"
    per_image = max(1, stats.images)
    opened = f"{ui.number(stats.slices_opened)}, {format_bytes(stats.slice_bytes_opened)}"
    if _has_times(stats):
        opened += f", {stats.seconds_per_opening * 1e6:.0f} µs each"
    board = f" on {stats.board}" if stats.board else ""
    return [
        ("enclave", f"{stats.enclave}{board}: {stats.isolation}"),
        ("planned for", plans.board_text(stats.planned_for)),
        ("inside memory", f"peak {format_bytes(stats.inside_peak_bytes)} {limit}"),
        ("calls inside", ui.number(stats.calls)),
        (
            "crossed an image",
            f"{format_bytes(stats.bytes_in // per_image)} in, {format_bytes(stats.bytes_out // per_image)} out",
        ),
        ("slices opened", opened),
    ]


def _has_times(stats: Stats) -> bool:
    """Whether the enclave's own times mean something: OP-TEE's clock has steps of a millisecond."""
    seconds = stats.seconds_opening + stats.seconds_computing
    return stats.enclave == "local" or (stats.enclave is not None and seconds > _OPTEE_CLOCK_SECONDS)


def _show_times(stats: Stats, n_images: int) -> None:
    """Where the time went; opening and computing are parts of the inside steps."""
    total = sum(step.seconds for step in stats.stages)
    rows: list[tuple[str, ...]] = [
        (step.world, plans.name_layers(step.layers), *_time_cells(step.seconds, total, n_images))
        for step in stats.stages
    ]
    inside = sum(step.seconds for step in stats.stages if step.world == "inside")
    if _has_times(stats):
        crossing = max(0.0, inside - stats.seconds_opening - stats.seconds_computing)
        parts = [
            ("computing", stats.seconds_computing),
            ("opening slices", stats.seconds_opening),
            ("crossing", crossing),
        ]
        rows += [("", f"inside: {name}", *_time_cells(seconds, total, n_images)) for name, seconds in parts]
    rows.append(("all", "", *_time_cells(total, total, n_images)))
    ui.table("Time", ["where", "what", "ms an image", "share"], rows, right="ms an image,share")


def _time_cells(seconds: float, total: float, n_images: int) -> tuple[str, str]:
    return f"{seconds / n_images * 1e3:.3f}", f"{seconds / max(total, 1e-12) * 100:.0f} %"
