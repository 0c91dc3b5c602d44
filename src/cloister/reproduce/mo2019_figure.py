"""Figure 2 of Mo et al. (CCS 2019) from our numbers: a panel for each data set, with the values that it states.

Below each stands what its layers memorise, which the paper does not have.
"""

from __future__ import annotations

import io
from typing import Any

from cloister.exposure.figure import check_figure, draw_layers, draw_memorisation
from cloister.reproduce.mo2019_exposure import ExposureDocument, SetExposure
from cloister.reproduce.mo2019_paper import LAST_CONVOLUTION, PAPER

__all__ = ["draw"]

_PANEL_INCHES = (5.2, 4.2)
_PAPER = "#107030"


def draw(document: ExposureDocument) -> bytes:
    """Exposures and memorisations as an SVG; further rows have the network with reversed widths.

    Raises:
        UserError: matplotlib is not installed.
    """
    check_figure()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = [row for row in (document.sets, document.reversed) if row]
    n_columns = len(document.sets)
    figure = Figure((_PANEL_INCHES[0] * n_columns, 2 * _PANEL_INCHES[1] * len(rows)), layout="constrained")
    grid = figure.subplots(2 * len(rows), n_columns, squeeze=False, sharey="row")
    for place, row in enumerate(rows):
        for axes, below, one in zip(*grid[2 * place : 2 * place + 2], row, strict=False):
            _panel(axes, one)
            draw_memorisation(below, one.layers)
            _name_layers(below, one)
        for axes in grid[2 * place : 2 * place + 2, len(row) :].flat:
            axes.remove()
    figure.suptitle(f"VGG-7, {document.n_samples:,} images, {_seeds(document)}\n95 % intervals over seeds")
    _legend(figure, grid)
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "cloister"}):  # the same figure of the same document
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _seeds(document: ExposureDocument) -> str:
    """How many there are, and of how many the controls are."""
    texts = [f"{n} {'seed' if n == 1 else 'seeds'}" for n in (document.n_seeds, document.n_controlled)]
    return texts[0] + (f" (controls: {texts[1]})" if document.n_controlled else "")


def _panel(axes: Any, one: SetExposure) -> None:
    draw_layers(axes, one.layers)
    _name_layers(axes, one)
    names = [layer.name for layer in one.layers]
    if one.widths == "paper":
        place, stated = names.index(LAST_CONVOLUTION), PAPER[one.data].last_convolution
        axes.scatter([place], [stated], marker="D", color=_PAPER, label="the paper's value", zorder=4)
        axes.set_title(f"{one.data}, {one.epochs} epochs")
    else:
        axes.set_title(f"{one.data}, {one.epochs} epochs, widths reversed")


def _name_layers(axes: Any, one: SetExposure) -> None:
    labels = [f"{layer.name}\n{layer.n_parameters:,}" for layer in one.layers]
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=8)


def _legend(figure: Any, grid: Any) -> None:
    """One for all panels, below them."""
    known: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=len(known))
