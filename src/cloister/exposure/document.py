"""What `measure` found, as a document: the only thing that tables and figures read."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "Comparison",
    "Control",
    "Exposure",
    "Fit",
    "Interval",
    "LayerExposure",
    "Memorisation",
    "Point",
    "Ranking",
    "Ratio",
    "Reading",
    "Run",
    "Separation",
    "Variant",
]

Control = Literal["reinitialised", "unseen-base"]
#: What is fine-tuned: the target as it is, or a control.
Variant = Literal["target", "reinitialised", "unseen-base"]
#: `p` on the members S alone (M_p of the paper), `r` on S and the non-members T (M_r), `half` on a half of S and a half
#: of T, with the layer's weights drawn anew.
Fit = Literal["p", "r", "half"]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How a model does on S and T.

    Attributes:
        epoch: epochs of fine-tuning before it; 0 for the model as it was.
        loss_members: mean cross-entropy on S, in nats.
        loss_nonmembers: on T.
        accuracy_members: in [0, 1].
        accuracy_nonmembers: on T.
        loss_error: standard error of `epsilon`, from the spread of the samples' losses.
        accuracy_error: likewise of `gap`.
    """

    epoch: int
    loss_members: float
    loss_nonmembers: float
    accuracy_members: float
    accuracy_nonmembers: float
    loss_error: float
    accuracy_error: float

    @property
    def epsilon(self) -> float:
        """Equation 1 of the paper: mean loss on T less that on S."""
        return self.loss_nonmembers - self.loss_members

    @property
    def gap(self) -> float:
        """The same by accuracy: that on S less that on T."""
        return self.accuracy_members - self.accuracy_nonmembers


class Separation(msgspec.Struct, frozen=True, kw_only=True):
    """How far members lie above non-members in some score: 2 AUC - 1.

    Attributes:
        value: in [-1, 1]; 0 where neither lies above the other, 1 where every member lies above every non-member.
        error: its standard error as an estimate from finitely many samples (DeLong et al., 1988).
    """

    value: float
    error: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One fine-tuning of one layer.

    Attributes:
        variant: of which model.
        layer: its name.
        repeat: counted from 0.
        fit: on S, on S and T, or on half of both with the layer drawn anew.
        readings: at epoch 0 and at epochs 1, 2, 5, 10, 20, 50, … up to the last.
        equal_steps: of fit `r` only: after as many steps as fit `p` takes in all.
        has_gradient: False if no parameter of the layer moved.
        seconds: wall time.
        held_out: of fit `half` only: how far the members of the other half lie above its non-members in what their
            loss gains by the replacement.
    """

    variant: Variant
    layer: str
    repeat: int
    fit: Fit
    readings: tuple[Reading, ...]
    equal_steps: Reading | None
    has_gradient: bool
    seconds: float
    held_out: Separation | None = None


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over repeats and its 95 % confidence interval (Student's t); no interval of a single repeat."""

    mean: float
    low: float | None
    high: float | None


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """Equation 4: (p - r) / p, with what it was made from.

    Attributes:
        p: ε(M_p), the generalisation error after fine-tuning on S.
        r: ε(M_r), after fine-tuning on S and T.
        exposure: the ratio; None where it is undefined.
        undefined: why it is, or None.
    """

    p: Interval
    r: Interval
    exposure: Interval | None
    undefined: str | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """M_p against M_r: by loss as in the paper, and by accuracy."""

    by_loss: Ratio
    by_accuracy: Ratio


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison after a number of epochs."""

    epoch: int
    comparison: Comparison


class Memorisation(msgspec.Struct, frozen=True, kw_only=True):
    """How much more members lose than non-members when a layer's weights are replaced by some that saw neither.

    Each value is 2 AUC - 1 of the loss gained, members against non-members: 0 where the weights hold nothing of the
    members that they do not hold of non-members, 1 where every member loses more than every non-member. Its interval
    holds the spread over the repeats and that of finitely many samples.

    Attributes:
        measured: of the target's layer.
        reinitialised: of the layer with weights drawn anew; None if left out.
        unseen_base: of the layer in a base that was trained on neither S nor T; None if left out.
    """

    measured: Interval
    reinitialised: Interval | None
    unseen_base: Interval | None


class LayerExposure(msgspec.Struct, frozen=True, kw_only=True):
    """What was found for one layer.

    Attributes:
        name: its PyTorch name, or that of the group.
        depth: its place among the layers, from 0, by first use.
        parameters: names of its parameters.
        n_parameters: their elements.
        measured: the paper's measure, after all epochs.
        curve: the same at each reading before that.
        equal_steps: M_r after as many steps as M_p; after as many epochs it has made more of them.
        reinitialised: the layer's weights drawn anew before both fine-tunings; None if left out.
        unseen_base: in a base that was trained on neither S nor T; None if left out.
        memorisation: the measure that these controls do not score.
    """

    name: str
    depth: int
    parameters: tuple[str, ...]
    n_parameters: int
    measured: Comparison
    curve: tuple[Point, ...]
    equal_steps: Comparison
    reinitialised: Comparison | None
    unseen_base: Comparison | None
    memorisation: Memorisation


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """The order of the layers by a measure, and what goes along with it.

    Attributes:
        layers: names, the highest first; layers whose value is undefined are not among them.
        with_parameters: Spearman's rank correlation of the value and the number of parameters; None if there is none
            (fewer than three layers, or all of one size).
        with_depth: likewise of the value and depth.
        capacity_explains: whether `with_parameters` is at least 0.7 and at least `with_depth`; None if unknown.
    """

    layers: tuple[str, ...]
    with_parameters: float | None
    with_depth: float | None
    capacity_explains: bool | None


class Exposure(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `cloister measure`.

    Attributes:
        schema: its name and version.
        target: name of the model.
        members_sha256: of the images and labels of S.
        nonmembers_sha256: of T.
        n_members: images in S.
        n_nonmembers: images in T.
        n_unseen: images that the control base was trained on; None if it was given, or left out.
        epochs: of each fine-tuning.
        learning_rate: of Adam, constant.
        batch_size: largest number of images in one step.
        repeats: fine-tunings of each kind.
        seed: of the choice of S and T, of orders, and of what is drawn anew.
        precision: `float32` or `bfloat16` arithmetic.
        base: the target itself, A in the paper.
        unseen_base: the control base itself; None if left out.
        layers: by first use.
        ranking: of the layers by exposure (by loss).
        memorisation_ranking: of the layers by memorisation.
        findings: what the controls and the ranking say, in words.
        warnings: what makes the figures less sure.
        runs: every fine-tuning.
        seconds: of all fine-tunings, also of those done before an interruption.
    """

    schema: Literal["cloister.exposure/1"] = "cloister.exposure/1"
    target: str
    members_sha256: str
    nonmembers_sha256: str
    n_members: int
    n_nonmembers: int
    n_unseen: int | None
    epochs: int
    learning_rate: float
    batch_size: int
    repeats: int
    seed: int
    precision: str
    base: Reading
    unseen_base: Reading | None
    layers: tuple[LayerExposure, ...]
    ranking: Ranking
    memorisation_ranking: Ranking
    findings: tuple[str, ...]
    warnings: tuple[str, ...]
    runs: tuple[Run, ...]
    seconds: float
