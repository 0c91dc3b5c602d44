"""What `cloister bench` found, drawn: a panel for each model, and one for each thing that was varied."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from cloister.bench.compare import BenchDocument, BenchRow
from cloister.errors import UserError

__all__ = ["check_figure", "draw"]

_PANEL_INCHES = (6.0, 3.6)
#: Ratios above this are drawn on a logarithmic axis.
_LOGARITHMIC_FROM = 4
_OURS, _OTHERS = "#1f5fa8", "#9a9a9a"
#: Title, and what a row says of it, None for rows that are not of it.
_VARIED: tuple[tuple[str, Callable[[BenchRow], float | None]], ...] = (
    ("inside memory, KiB", lambda row: row.budget_bytes / 1024 if row.budget_bytes else None),
    ("layers inside", lambda row: row.n_inside if row.budget_bytes is None and row.bits == 8 else None),
    ("images in a run", lambda row: row.batch if row.engine == "cloister-inside" else None),
)


def check_figure() -> None:
    """Refuse before any work is done.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("a figure needs matplotlib, which is not installed", "pip install 'cloister[bench]'") from error


def draw(document: BenchDocument) -> bytes:
    """The ratios as an SVG: against the first engine that each model was compared with.

    Raises:
        UserError: there is nothing to draw, or no matplotlib.
    """
    check_figure()
    if not document.rows:
        raise UserError("nothing was measured, so there is nothing to draw")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = [_bars(rows) for rows in _by_model(document).values()]
    panels += [_lines(document, title, value) for title, value in _VARIED if _is_varied(document, value)]
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = Figure((_PANEL_INCHES[0] * n_columns, _PANEL_INCHES[1] * n_rows), layout="constrained")
    axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for panel, ax in zip(panels, axes, strict=False):
        panel(ax)
    for ax in axes[len(panels) :]:
        ax.remove()
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "cloister"}):  # the same figure of the same document
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _by_model(document: BenchDocument) -> dict[str, list[BenchRow]]:
    """Rows of the smallest batch, against the model's first."""
    found: dict[str, list[BenchRow]] = {}
    for row in document.rows:
        first = found.setdefault(row.model, [row])[0]
        if row is not first and (row.against, row.batch) == (first.against, first.batch):
            found[row.model].append(row)
    return found


def _bars(rows: list[BenchRow]) -> Callable[[Any], None]:
    """A bar for each engine, with its interval."""
    from matplotlib.ticker import LogLocator, NullFormatter

    def panel(ax: Any) -> None:
        ordered = sorted(rows, key=lambda row: -row.ratio)
        ratios = [row.ratio for row in ordered]
        spread = [[r.ratio - r.ratio_low for r in ordered], [r.ratio_high - r.ratio for r in ordered]]
        colours = [_OTHERS if row.inside is None else _OURS for row in ordered]
        ax.barh([row.engine for row in ordered], ratios, xerr=spread, color=colours, ecolor="black", capsize=2)
        ax.axvline(1, color="black", linewidth=0.8)
        if max(ratios) > _LOGARITHMIC_FROM:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(f"{rows[0].model}, {rows[0].batch} at a time")
        ax.set_xlabel(f"time / time of {rows[0].against}")

    return panel


def _points(document: BenchDocument, value: Callable[[BenchRow], float | None]) -> dict[str, dict[float, BenchRow]]:
    """For each model, what is inside by what was varied, against the model's first."""
    points: dict[str, dict[float, BenchRow]] = {}
    first: dict[str, BenchRow] = {}
    for row in document.rows:
        x = value(row)
        of_first = first.setdefault(row.model, row)
        same_batch = row.batch == of_first.batch or row.engine == "cloister-inside"
        if x and row.inside not in (None, "none") and row.against == of_first.against and same_batch:
            points.setdefault(row.model, {}).setdefault(x, row)
    return points


def _is_varied(document: BenchDocument, value: Callable[[BenchRow], float | None]) -> bool:
    return any(len(by_x) > 1 for by_x in _points(document, value).values())


def _lines(document: BenchDocument, title: str, value: Callable[[BenchRow], float | None]) -> Callable[[Any], None]:
    """A line for each model."""

    def panel(ax: Any) -> None:
        for model, by_x in _points(document, value).items():
            xs = sorted(by_x)
            rows = [by_x[x] for x in xs]
            spread = [[r.ratio - r.ratio_low for r in rows], [r.ratio_high - r.ratio for r in rows]]
            ax.errorbar(xs, [row.ratio for row in rows], yerr=spread, marker="o", capsize=2, label=model)
        ax.set_xlabel(title)
        ax.set_ylabel(f"time / time of {document.rows[0].against}")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)  # above, where no point is

    return panel
