"""Plans and crossings as tables: `protect` and `inspect` show the same."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.bundle.crossing import Crossing
from cloister.cli import ui
from cloister.planning.plan import BoardPlan, LayerPlan, Plan
from cloister.units import format_bytes

__all__ = [
    "board_text",
    "budget_text",
    "describe_crossing",
    "lanes_text",
    "name_layers",
    "show_crossings",
    "show_plan",
    "show_shape",
]

#: More layers than this are named by the first and the last.
_MANY = 3


def show_plan(title: str, plan: Plan) -> None:
    """Print a plan, one layer a line, and the reasons below."""
    columns = ["layer", "op", "weights", "where", "slices", "resident"]
    ui.table(title, columns, [_row(layer) for layer in plan.layers], right="weights,slices,resident")
    reasons: dict[str, list[str]] = {}
    for layer in plan.layers:
        reasons.setdefault(_reason(layer), []).append(layer.name)
    # They need not lie side by side, so the first and the last would mislead.
    rows = [
        (reason, name_layers(names) if len(names) <= _MANY else f"{len(names)} layers")
        for reason, names in reasons.items()
    ]
    ui.fields("Why", rows)


def _row(layer: LayerPlan) -> tuple[str, ...]:
    size = format_bytes(layer.weight_bytes)
    if not layer.inside:
        return layer.name, layer.op, size, _where(layer), "", ""
    return layer.name, layer.op, size, _where(layer), str(layer.n_slices), format_bytes(layer.resident_bytes)


def _where(layer: LayerPlan) -> str:
    return "inside" if layer.inside else "outside"


def _reason(layer: LayerPlan) -> str:
    """Why it is where it is; the numbers of the reason's second half have columns of their own."""
    return f"{_where(layer)}, {layer.reason.removeprefix('outside: ').partition('; ')[0]}"


def name_layers(names: Sequence[str]) -> str:
    """Names with commas between, or the first and the last of many."""
    if len(names) <= _MANY:
        return ", ".join(names) or "none"
    return f"{names[0]} … {names[-1]} ({len(names)} layers)"


def show_shape(shape: Sequence[int]) -> str:
    """A shape to read: `32 x 2 x 2`."""
    return " x ".join(map(str, shape))


def budget_text(plan: Plan) -> str:
    """Inside memory against its budget: `14.2 KiB of 16 KiB (at least 9.1 KiB)`."""
    if not any(layer.inside for layer in plan.layers):
        return "none: nothing is inside"
    limit = f"of {format_bytes(plan.budget_bytes)}" if plan.budget_bytes is not None else "without a limit"
    return f"{format_bytes(plan.inside_bytes)} {limit} (it could run in {format_bytes(plan.smallest_budget_bytes)})"


def board_text(board: BoardPlan | None) -> str:
    """What a plan is made for, and what its protection is worth: `rpi3 — a demonstration: no secure RAM: …`."""
    if board is None:
        return "none: for anything with the memory"
    return f"{board.name} — " + (
        f"a demonstration: {'; '.join(board.demonstration)}" if board.demonstration else board.title
    )


def lanes_text(plan: Plan) -> str:
    """How many images share an opening: `4 images: what streams is opened once for them`."""
    return "one image" if plan.lanes == 1 else f"{plan.lanes} images: what streams is opened once for them"


def show_crossings(crossings: Sequence[Crossing]) -> None:
    """Print what crosses, if anything does."""
    if crossings:
        rows = [(c.tensor, c.direction, c.dtype, show_shape(c.shape), format_bytes(c.n_bytes)) for c in crossings]
        ui.table("What crosses, for each image", ["tensor", "goes", "type", "shape", "size"], rows, right="size")


def describe_crossing(crossing: Crossing) -> str:
    """A crossing in a few words: `goes in: int8, 32 x 4 x 4, 512 B`."""
    verb = "goes in" if crossing.direction == "in" else "comes out"
    return f"what {verb}: {crossing.dtype} {show_shape(crossing.shape)}, {format_bytes(crossing.n_bytes)}"
