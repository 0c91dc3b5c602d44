"""Exposure layer by layer, drawn like Figure 2 of Mo et al. (CCS 2019), with the controls beside the bars."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from cloister.bench.figure import check_figure
from cloister.exposure.document import Comparison, Exposure, Interval, LayerExposure

__all__ = ["check_figure", "draw", "draw_layers"]

_BAR, _ANEW, _UNSEEN, _STEPS = "#9dbfe3", "#c06000", "#a01010", "black"
_INCHES_PER_LAYER = 0.9


def draw(document: Exposure) -> bytes:
    """The exposures by loss as an SVG: a bar with its interval for each layer, a mark for each control.

    Layers whose exposure is undefined have no bar, and say so.

    Raises:
        UserError: matplotlib is not installed.
    """
    check_figure()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure((max(6.0, 2 + _INCHES_PER_LAYER * len(document.layers)), 4.0), layout="constrained")
    axes = figure.subplots()
    draw_layers(axes, document.layers)
    axes.set_title(f"{document.target}, {document.epochs} epochs, {document.repeats} repeats, 95 % intervals")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "cloister"}):  # the same figure of the same document
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def draw_layers(axes: Any, layers: Sequence[LayerExposure]) -> None:
    """Draw bars and marks of layers into axes of matplotlib."""
    places = range(len(layers))
    for place, layer in zip(places, layers, strict=True):
        found = layer.measured.by_loss.exposure
        if found is None:
            axes.text(place, 0.02, "undefined", rotation=90, ha="center", va="bottom")
        else:
            axes.bar(place, found.mean, yerr=_spread(found), color=_BAR, ecolor="black", capsize=3, width=0.6)
    for label, marker, colour, of_control in _marks(layers):
        means = zip(places, map(_mean, of_control), strict=True)
        points = [(place, mean) for place, mean in means if mean is not None]
        if points:
            xs, ys = zip(*points, strict=True)
            axes.scatter(xs, ys, marker=marker, color=colour, label=label, zorder=3)
    axes.set_xticks(list(places), [layer.name for layer in layers], rotation=45, ha="right")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("exposure")


def _marks(layers: Sequence[LayerExposure]) -> list[tuple[str, str, str, list[Comparison | None]]]:
    return [
        ("equal steps", "_", _STEPS, [layer.equal_steps for layer in layers]),
        ("weights drawn anew", "x", _ANEW, [layer.reinitialised for layer in layers]),
        ("base that never saw the members", "o", _UNSEEN, [layer.unseen_base for layer in layers]),
    ]


def _mean(comparison: Comparison | None) -> float | None:
    found = comparison.by_loss.exposure if comparison else None
    return found.mean if found else None


def _spread(found: Interval) -> list[list[float]] | None:
    if found.low is None or found.high is None:
        return None
    return [[found.mean - found.low], [found.high - found.mean]]
