"""Exposure layer by layer, drawn like Figure 2 of Mo et al. (CCS 2019), and memorisation below, with the controls."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cloister.bench.figure import check_figure
from cloister.exposure.document import Comparison, Exposure, Interval, LayerExposure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_figure", "draw", "draw_layers", "draw_memorisation"]

_BAR, _STEPS = "#9dbfe3", "black"
_ANEW = ("weights drawn anew", "x", "#c06000")
_UNSEEN = ("base that never saw the members", "o", "#a01010")
_INCHES_PER_LAYER = 0.9


def draw(document: Exposure) -> bytes:
    """Exposure by loss and memorisation as an SVG: a bar with its interval for each layer, a mark for each control.

    Layers whose exposure is undefined have no bar, and say so.

    Raises:
        UserError: matplotlib is not installed.
    """
    check_figure()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    layers = document.layers
    figure = Figure((max(6.0, 2 + _INCHES_PER_LAYER * len(layers)), 7.0), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    draw_layers(above, layers)
    draw_memorisation(below, layers)
    for axes in (above, below):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    above.set_title(f"{document.target}, {document.epochs} epochs, {document.repeats} repeats, 95 % intervals")
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "cloister"}):  # the same figure of the same document
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def draw_layers(axes: Axes, layers: Sequence[LayerExposure]) -> None:
    """Draw the exposures of layers into axes of matplotlib: bars, and marks of the controls."""
    _panel(axes, "exposure", layers, _exposures(layers))


def draw_memorisation(axes: Axes, layers: Sequence[LayerExposure]) -> None:
    """Draw what layers memorise, likewise."""
    _panel(axes, "memorisation", layers, _memorisations(layers))


#: A label, a marker and a colour, and a value for each layer or None; the first is drawn as bars.
_Series = tuple[str, str, str, list[Interval | None]]


def _exposures(layers: Sequence[LayerExposure]) -> list[_Series]:
    return [
        ("target", "", _BAR, [layer.measured.by_loss.exposure for layer in layers]),
        ("equal steps", "_", _STEPS, [layer.equal_steps.by_loss.exposure for layer in layers]),
        (*_ANEW, [_of(layer.reinitialised) for layer in layers]),
        (*_UNSEEN, [_of(layer.unseen_base) for layer in layers]),
    ]


def _memorisations(layers: Sequence[LayerExposure]) -> list[_Series]:
    return [
        ("target", "", _BAR, [layer.memorisation.measured for layer in layers]),
        (*_ANEW, [layer.memorisation.reinitialised for layer in layers]),
        (*_UNSEEN, [layer.memorisation.unseen_base for layer in layers]),
    ]


def _of(comparison: Comparison | None) -> Interval | None:
    return comparison.by_loss.exposure if comparison else None


def _panel(axes: Axes, name: str, layers: Sequence[LayerExposure], series: list[_Series]) -> None:
    (_, _, colour, bars), *marks = series
    for place, found in enumerate(bars):
        if found is None:
            axes.text(place, 0.02, "undefined", rotation=90, ha="center", va="bottom")
        else:
            axes.bar(place, found.mean, yerr=_spread(found), color=colour, ecolor="black", capsize=3, width=0.6)
    for label, marker, colour, values in marks:
        points = [(place, found.mean) for place, found in enumerate(values) if found is not None]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, label=label, zorder=3)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=45, ha="right")
    axes.set_ylabel(name)


def _spread(found: Interval) -> list[list[float]] | None:
    if found.low is None or found.high is None:
        return None
    return [[found.mean - found.low], [found.high - found.mean]]
