"""`cloister inspect`: what is known of a bundle without opening it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
import msgspec

from cloister.bundle.crossing import Crossing, crossings
from cloister.bundle.file import Bundle, read_bundle
from cloister.bundle.keys import fingerprint
from cloister.bundle.manifest import Manifest
from cloister.cli import options, plans, ui
from cloister.units import format_bytes

__all__ = ["inspect"]


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the file and of its sections: the sealed program and slices, and the clear outside parts."""

    file: int
    sealed_program: int
    sealed_slices: int
    outside: int


class InspectDocument(Manifest, frozen=True, kw_only=True):
    """What `cloister inspect -f json` prints: the manifest, and what else the file tells."""

    schema: Literal["cloister.inspect/1"] = "cloister.inspect/1"
    bundle_id: str
    recipients: tuple[str, ...]
    sizes: Sizes
    crossings: tuple[Crossing, ...]


@click.command()
@click.argument("bundle", type=options.FILE)
@options.output_format
def inspect(bundle: Path, format: str) -> None:
    """Show what is known of BUNDLE without opening it.

    That is its manifest: the plan with its reasons, the steps, and the tensors that cross. No enclave is needed.
    """
    with read_bundle(bundle) as opened:
        document = _document(opened)
    if format == "json":
        ui.json(document)
    else:
        _show(document, bundle)


def _document(bundle: Bundle) -> InspectDocument:
    return InspectDocument(
        **msgspec.structs.asdict(bundle.manifest),
        bundle_id=bundle.bundle_id.hex(),
        recipients=tuple(fingerprint(recipient.public_key) for recipient in bundle.recipients),
        sizes=Sizes(
            file=bundle.n_bytes,
            sealed_program=bundle.sealed_program.n_bytes,
            sealed_slices=bundle.slices.n_bytes,
            outside=bundle.outside.n_bytes,
        ),
        crossings=crossings(bundle.manifest),
    )


def _show(document: InspectDocument, path: Path) -> None:
    sizes, plan = document.sizes, document.plan
    n_slices, n_resident = len(document.slices), sum(piece.resident for piece in document.slices)
    rows = [
        ("model", document.model),
        ("precision", "int8" if plan.bits == 8 else "float32"),
        ("made by", f"cloister {document.cloister}"),
        ("bundle id", document.bundle_id),
        ("file", format_bytes(sizes.file)),
        ("sealed", f"program {format_bytes(sizes.sealed_program)}, {_slices(n_slices, n_resident, sizes)}"),
        ("cipher", document.suite),
        ("in the clear", format_bytes(sizes.outside)),
        ("board", plans.board_text(plan.board)),
        ("inside memory", plans.budget_text(plan)),
        ("side by side", plans.lanes_text(plan)),
        ("opens in", ", ".join(document.recipients) or "any device: nothing is sealed"),
    ]
    sealed_only = ("sealed", "cipher", "side by side")
    ui.fields(str(path), rows if n_slices else [row for row in rows if row[0] not in sealed_only])
    plans.show_plan("Plan", plan)
    shapes = {tensor.name: plans.show_shape(tensor.shape) for tensor in document.tensors}
    steps = [
        (
            str(number),
            step.world,
            plans.name_layers(step.layers),
            ", ".join(shapes[name] for name in step.inputs),
            ", ".join(shapes[name] for name in step.outputs),
        )
        for number, step in enumerate(document.steps, start=1)
    ]
    ui.table("Steps", ["", "where", "layers", "takes", "gives"], steps)
    plans.show_crossings(document.crossings)


def _slices(n_slices: int, n_resident: int, sizes: Sizes) -> str:
    return f"{n_slices} slices {format_bytes(sizes.sealed_slices)}, of which {n_resident} stay inside"
