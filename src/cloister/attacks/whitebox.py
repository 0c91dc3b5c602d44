"""The gradient-based attack of Nasr, Shokri and Houmansadr (IEEE S&P 2019): a network tells members by their features.

It has an encoder for each component (gradients, activations, loss, label, output) and a head for all of them together.
It learns from images whose membership the attacker knows, and judges others. The paper's encoder of a gradient is
convolutional; here it is dense, since what it reads is mostly summed up by tensor (`per_sample.py`).

Such a network often does not learn at all, and then gives 50 % for whatever it attacks. That is not a finding: it is
tried again from another start, and reported as not trained if that does not help.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from cloister.attacks.arrays import members_of
from cloister.attacks.observations import Observations
from cloister.attacks.per_sample import Features, Gradients, per_sample
from cloister.attacks.surrogate import Fidelity, Surrogate
from cloister.attacks.view import View
from cloister.errors import DataError, InputError
from cloister.outputs import write_whole
from cloister.progress import Named, Progress

__all__ = ["Attacker", "Whitebox", "attack", "attack_features", "split_known"]

#: How the attacker comes by gradients: `observed`: training is watched. `surrogate`: only inference is; a surrogate
#: stands for the inside. `none`: only inference is, and nothing stands for the inside.
Attacker = Literal["observed", "surrogate", "none"]

_BATCH, _EPOCHS, _PATIENCE, _RATE, _DECAY = 64, 100, 12, 1e-3, 1e-4
_WIDTH, _CODE, _DROPOUT = 64, 16, 0.2
_FARTHEST = 10.0
_STARTS = 3
#: The loss on what is learnt from must fall by this share of what guessing gives, or nothing was learnt.
_LEAST_GAIN = 0.01
#: Fewer known members, or non-members, are not enough to learn from and to stop by.
_LEAST = 10
_VERSION = 1


class Whitebox(msgspec.Struct, frozen=True, kw_only=True):
    """What an attack gave.

    Attributes:
        attacker: how it came by gradients.
        sees: what it was fed, by component: tensors with gradients, layers with activations, …
        scores: (M,) of the images asked about, larger for members, in the order of `asked`; None if it did not train.
        asked: (M,) their indices.
        n_known: images that it learnt from, and stopped by.
        not_trained: why there are no scores; None if there are.
        starts: networks that were tried.
        epochs: of the one that is used, until its best.
        loss_known: its least loss on what it learnt from, in nats; guessing gives `loss_guessing`.
        loss_guessing: entropy of the memberships it learnt from.
        auc_known: area under its ROC on what it learnt from.
        auc_validation: on what it was stopped by.
        notes: what must be said beside any number of it.
        fidelity: of the surrogate.
    """

    attacker: Attacker
    sees: dict[str, tuple[str, ...]]
    scores: tuple[float, ...] | None
    asked: tuple[int, ...]
    n_known: int
    not_trained: str | None
    starts: int
    epochs: int
    loss_known: float
    loss_guessing: float
    auc_known: float
    auc_validation: float
    notes: tuple[str, ...]
    fidelity: Fidelity | None = None

    def arrays(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Scores (M,) float64 and indices (M,) int64.

        Raises:
            InputError: it did not train, so there are none.
        """
        if self.scores is None:
            raise InputError(f"the attack model did not train, so it has no scores: {self.not_trained}")
        return np.array(self.scores), np.array(self.asked, np.int64)


def split_known(
    is_member: npt.ArrayLike, labels: npt.NDArray[np.int64], *, share: float = 0.5, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Images whose membership the attacker is taken to know: the same share of members and non-members, class by class.

    Args:
        is_member: (N,) bool.
        labels: (N,) int64.
        share: in (0, 1).
        seed: of the choice.

    Returns:
        Their indices in ascending order; the others are for the evaluation.
    """
    truth = members_of(is_member, len(labels))
    rng = np.random.default_rng(seed)
    chosen: list[npt.NDArray[np.int64]] = []
    for side in (True, False):
        order = rng.permutation(np.flatnonzero(truth == side))
        # Sorted by class, every other one or so of a class is taken, whatever its size.
        by_class = order[np.argsort(labels[order], kind="stable")]
        places = np.arange(1, len(by_class) + 1) * share
        chosen.append(by_class[np.floor(places) > np.floor(places - share)])
    return np.sort(np.concatenate(chosen))


def attack(
    view: View,
    seen: Observations,
    is_member: npt.ArrayLike,
    known: npt.NDArray[np.int64],
    *,
    surrogate: Surrogate | None = None,
    gradients: Gradients = "summary",
    seed: int = 0,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Whitebox:
    """Attack what is visible.

    Args:
        view: what is visible.
        seen: N images, members and non-members; with gradients if training is watched.
        is_member: (N,) bool.
        known: indices of those whose membership the attacker knows (`split_known`); all others are asked about.
        surrogate: in the place of the inside, for an attacker who only watches inference.
        gradients: how they are told (`per_sample.py`).
        seed: of first weights, orders and the part to stop by.
        state: folder where a finished attack is kept.
        progress: told after each chunk of features, and each epoch.

    Raises:
        DataError: too few known members or non-members, or none to ask about.
        InputError: arrays that do not fit, or numbers that are not finite.
    """
    features = per_sample(view, seen, surrogate=surrogate, gradients=gradients, progress=progress)
    attacker: Attacker = "surrogate" if surrogate else "none" if seen.gradients is None else "observed"
    found = attack_features(features, is_member, known, seed=seed, state=state, progress=progress)
    return msgspec.structs.replace(
        found,
        attacker=attacker,
        notes=(*_notes(view, seen, surrogate, features), *found.notes),
        fidelity=surrogate.fidelity if surrogate else None,
    )


def _notes(view: View, seen: Observations, surrogate: Surrogate | None, features: Features) -> list[str]:
    notes = []
    if not view.sees_parameters and surrogate is None:
        notes.append("nothing is visible: this is an attack on outputs" if seen.released is not None else _SEES_NOTHING)
    elif "gradient" not in features.components:
        notes.append("no gradient is known: this is an attack on activations and outputs")
    if surrogate is not None and not surrogate.fidelity.converged:
        notes.append("the surrogate had not converged: a longer fit may find more")
    return notes


_SEES_NOTHING = "nothing is visible, and nothing is released: this attack sees only the label"


def attack_features(
    features: Features,
    is_member: npt.ArrayLike,
    known: npt.NDArray[np.int64],
    *,
    seed: int = 0,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Whitebox:
    """The attack on features that are there already; see `attack`."""
    truth = members_of(is_member, len(features))
    asked = _check(features, truth, known)
    path = None if state is None else state / f"whitebox-{_digest(features, truth, known, seed)}.json"
    kept = _read(path)
    if kept is not None:
        return kept
    learnt, stopped = _parts(known, truth, seed)
    best: _Network | None = None
    starts = 0
    while starts < _STARTS and (best is None or best.not_trained is not None):
        starts += 1
        what = Named(progress, f"attack model, start {starts}")
        best = _fit(features, truth, learnt, stopped, [seed, starts], what)
    assert best is not None
    scores = best.scores(features.take(asked)) if best.not_trained is None else None
    found = Whitebox(
        attacker="none",
        sees=features.sees,
        scores=None if scores is None else tuple(scores.tolist()),
        asked=tuple(asked.tolist()),
        n_known=len(known),
        not_trained=best.not_trained,
        starts=starts,
        epochs=best.epochs,
        loss_known=best.loss_known,
        loss_guessing=best.loss_guessing,
        auc_known=_auc(truth[learnt], best.scores(features.take(learnt))),
        auc_validation=_auc(truth[stopped], best.scores(features.take(stopped))),
        notes=(),
    )
    if path is not None:
        write_whole(path, msgspec.json.encode(found), force=True)
    return found


def _check(features: Features, truth: npt.NDArray[np.bool_], known: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The images that are asked about."""
    if len(np.unique(known)) != len(known) or (len(known) and not 0 <= known.min() <= known.max() < len(truth)):
        raise InputError(f"known: expected indices below {len(truth)}, each once")
    n_members = int(truth[known].sum())
    if min(n_members, len(known) - n_members) < _LEAST:
        raise DataError(
            f"expected at least {_LEAST} known members and as many non-members to learn from, "
            f"but got {n_members} and {len(known) - n_members}"
        )
    asked = np.setdiff1d(np.arange(len(truth)), known)
    if not 0 < int(truth[asked].sum()) < len(asked):
        raise DataError("expected members and non-members that the attacker does not know, to ask about")
    for name, values in features.components.items():
        if not values.isfinite().all():
            raise InputError(f"features `{name}`: expected finite numbers, but some are not")
    return asked


def _parts(
    known: npt.NDArray[np.int64], truth: npt.NDArray[np.bool_], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What is learnt from, and a fifth to stop by."""
    rng = np.random.default_rng([seed, 0])
    sides = [rng.permutation(known[truth[known] == side]) for side in (True, False)]
    stopped = np.concatenate([side[: max(2, len(side) // 5)] for side in sides])
    return np.setdiff1d(known, stopped), stopped


def _auc(truth: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float:
    return float(roc_auc_score(truth, scores)) if np.isfinite(scores).all() else math.nan


# --- the attack model ---


class _Network(nn.Module):
    """Encoders and a head; features are standardized by those that it learns from."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.names = tuple(features.components)
        self.means = {name: one.mean(0) for name, one in features.components.items()}
        self.deviations = {name: one.std(0) for name, one in features.components.items()}
        self.encoders = nn.ModuleDict({name: _encoder(one.shape[1]) for name, one in features.components.items()})
        self.head = nn.Sequential(
            nn.Linear(_CODE * len(self.names), _WIDTH), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(_WIDTH, 1)
        )
        self.epochs = 0
        self.loss_known = self.loss_guessing = math.nan
        self.not_trained: str | None = None

    def forward(self, standard: dict[str, Tensor]) -> Tensor:
        """Standardized features to logits (N,)."""
        codes = [self.encoders[name](standard[name]) for name in self.names]
        logits: Tensor = self.head(torch.cat(codes, 1))
        return logits[:, 0]

    def standard(self, features: Features) -> dict[str, Tensor]:
        """Features as the encoders want them; what is the same for all that it learns from is 0."""
        found = {}
        for name, values in features.components.items():
            scale = torch.where(self.deviations[name] > 1e-8, self.deviations[name], torch.inf)
            found[name] = ((values - self.means[name]) / scale).clamp(-_FARTHEST, _FARTHEST)
        return found

    def scores(self, features: Features) -> npt.NDArray[np.float64]:
        """(N,) float64."""
        self.eval()
        with torch.no_grad():
            return self(self.standard(features)).double().numpy()  # type: ignore[no-any-return]


def _encoder(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, _WIDTH), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(_WIDTH, _CODE), nn.ReLU())


def _fit(
    features: Features,
    truth: npt.NDArray[np.bool_],
    learnt: npt.NDArray[np.int64],
    stopped: npt.NDArray[np.int64],
    seed: list[int],
    progress: Progress,
) -> _Network:
    """Train a network; the weights of the epoch with the least loss on `stopped` are kept."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        network = _Network(features.take(learnt))
        optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
        own, other = (_Rows(network, features.take(part), truth[part]) for part in (learnt, stopped))
        share = float(own.truth.mean())
        network.loss_guessing = -share * math.log(share) - (1 - share) * math.log(1 - share)
        least, kept = math.inf, {name: one.clone() for name, one in network.state_dict().items()}
        network.loss_known = network.loss_guessing
        for epoch in range(1, _EPOCHS + 1):
            order = np.random.default_rng([*seed, epoch]).permutation(len(learnt))
            for batch in torch.split(torch.from_numpy(order), _BATCH):
                network.train()
                optimizer.zero_grad()
                own.loss(batch).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            network.eval()
            with torch.no_grad():
                network.loss_known = min(network.loss_known, float(own.loss()))
                loss = float(other.loss())
            progress.update(epoch, _EPOCHS, f"loss {loss:.4f}")
            if loss < least:
                least, network.epochs = loss, epoch
                kept = {name: one.clone() for name, one in network.state_dict().items()}
            elif epoch - network.epochs >= _PATIENCE or not math.isfinite(loss):
                break
        network.load_state_dict(kept)
    network.not_trained = _why_not_trained(network, features.take(learnt))
    return network


class _Rows:
    """Standardized features with memberships."""

    def __init__(self, network: _Network, features: Features, truth: npt.NDArray[np.bool_]) -> None:
        self._network, self._standard = network, network.standard(features)
        self.truth = torch.from_numpy(truth).float()

    def loss(self, at: Tensor | None = None) -> Tensor:
        """Mean cross entropy of some rows, or of all."""
        standard = self._standard if at is None else {name: one[at] for name, one in self._standard.items()}
        truth = self.truth if at is None else self.truth[at]
        return functional.binary_cross_entropy_with_logits(self._network(standard), truth)


def _why_not_trained(network: _Network, learnt: Features) -> str | None:
    """Whether it says the same of all, or learnt nothing even of what it was taught."""
    scores = network.scores(learnt)
    if not np.isfinite(scores).all():
        return "its scores are not finite"
    if float(scores.std()) < 1e-6:
        return "it gives every image the same score"
    if network.loss_known > (1 - _LEAST_GAIN) * network.loss_guessing:
        return (
            f"its loss on what it was taught stayed at {network.loss_known:.3f}, "
            f"where guessing gives {network.loss_guessing:.3f}"
        )
    return None


# --- what is kept ---


def _digest(features: Features, truth: npt.NDArray[np.bool_], known: npt.NDArray[np.int64], seed: int) -> str:
    digest = hashlib.sha256(msgspec.json.encode([_VERSION, str(torch.__version__), seed, features.sees]))
    for array in (truth, np.sort(known), *(one.numpy() for one in features.components.values())):
        digest.update(f"{array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def _read(path: Path | None) -> Whitebox | None:
    """A finished attack; what cannot be read is done again."""
    if path is None or not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Whitebox)
    except (OSError, msgspec.DecodeError):
        return None
