"""ROC curves on logarithmic axes: what counts is on the left, where few non-members are taken for members."""

from __future__ import annotations

import io
from collections.abc import Mapping

from cloister.attacks.metrics import Metrics
from cloister.bench.figure import check_figure
from cloister.errors import UserError

__all__ = ["check_figure", "draw_roc"]


def draw_roc(attacks: Mapping[str, Metrics], *, title: str = "") -> bytes:
    """One curve for each attack, as an SVG, with the diagonal of guessing.

    Args:
        attacks: what was found, by name, at least one.
        title: above the axes.

    Raises:
        UserError: there is nothing to draw, or matplotlib is not installed.
    """
    check_figure()
    if not attacks:
        raise UserError("no attack was judged, so there is nothing to draw")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure((5.5, 5.0), layout="constrained")
    axes = figure.subplots()
    for name, found in attacks.items():
        axes.step(found.roc.fpr, found.roc.tpr, where="post", label=f"{name}, AUC {found.auc.value:.3f}")
    least = min(0.1, *(1 / one.n_nonmembers for one in attacks.values()))
    axes.plot([least, 1], [least, 1], color="black", linestyle=":", linewidth=0.8, label="guessing")
    axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1))
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate", title=title)
    axes.legend(loc="lower right")
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "cloister"}):  # the same figure of the same document
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
