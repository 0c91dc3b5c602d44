"""How much each layer exposes, after Mo et al. (CCS 2019), with the controls that say what that is worth."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from cloister.errors import TargetError, UserError
from cloister.exposure import statistics
from cloister.exposure.control import ControlBase, control_base
from cloister.exposure.cut import Cut, cut_before
from cloister.exposure.document import (
    Comparison,
    Control,
    Exposure,
    Fit,
    Interval,
    LayerExposure,
    Memorisation,
    Point,
    Reading,
    Run,
    Variant,
)
from cloister.exposure.network import Group, Network
from cloister.exposure.samples import Sets, choose_sets
from cloister.exposure.tuning import Activations, Samples, Settings, fine_tune, initial_tensors, read_whole
from cloister.outputs import write_whole
from cloister.progress import Progress
from cloister.target import Pair, Target
from cloister.trainer import Precision, choose_precision, limited_threads

__all__ = ["CONTROLS", "SINGLE_REPEAT", "make_folder", "measure"]

CONTROLS: tuple[Control, ...] = ("reinitialised", "unseen-base")
_FITS: tuple[Fit, ...] = ("p", "r")
#: A warning of every measure without repeats.
SINGLE_REPEAT = "a single repeat has no interval"
_WHAT: dict[Fit, str] = {"p": "M_p", "r": "M_r", "half": "replaced"}
#: Parts of the seeds of what is drawn anew.
_REINITIALISED, _REPLACEMENT = 2, 4
_NO_GRADIENT = "no gradient reaches this layer"
#: More accuracy on S than this by fine-tuning a layer on S alone says that the model had not converged.
_STILL_LEARNING = 0.05
#: Of what a unit of work depends on and how it is computed; raised when that changes.
_UNIT_VERSION = 1


def measure(
    target: Target,
    *,
    epochs: int = 20,
    repeats: int = 3,
    lr: float = 1e-3,
    batch_size: int = 100,
    seed: int = 0,
    n_samples: int | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    controls: Collection[Control] = CONTROLS,
    control: Target | Pair | None = None,
    precision: Precision = "auto",
    n_threads: int | None = None,
    state: Path | str | None = None,
    cache_bytes: int = 1 << 30,
    progress: Progress | None = None,
) -> Exposure:
    """Measure how much of the members each layer's parameters expose, as Mo et al. define it.

    For every layer two copies of the model are fine-tuned in this layer alone: M_p on the members S, M_r on S and as
    many non-members T. With ε = E_T[loss] - E_S[loss], exposure is (ε(M_p) - ε(M_r)) / ε(M_p); likewise by accuracy. It
    is undefined where ε(M_p) cannot be told from 0 (`statistics.ratio` says how that is decided).

    The controls say what the number is worth. `equal_steps` is always there: M_r after as many steps as M_p.
    `reinitialised`: the layer's weights drawn anew before both fine-tunings. `unseen-base`: a base trained on neither S
    nor T, by the same recipe. The ranking is said to be explained by capacity if its rank correlation with the number
    of parameters is at least 0.7 and at least that with depth.

    Repeats differ in the order of images, and in what is drawn anew; so an interval holds the noise of fine-tuning, not
    that of training the target again, nor of the choice of S and T.

    `memorisation` stands beside it, since these controls do not score it: the layer is drawn anew and fitted on half of
    S and half of T, and what this adds to the loss is compared between the members and the non-members of the other
    halves, which it never saw. Its value is 2 AUC - 1: 0 where members lose no more than non-members.

    All but the layer is frozen: no dropout, batch norms in evaluation mode, but for the layer's own. What does not
    depend on the layer is computed once. Each fine-tuning is a unit of work that is kept in `state`: the same call
    after an interruption goes on, and ends as if there had been none.

    Args:
        target: with members and non-members.
        epochs: of each fine-tuning, at least 1.
        repeats: of each fine-tuning, at least 1; intervals need 2.
        lr: learning rate of Adam, constant.
        batch_size: largest number of images in a step, at least 2.
        seed: of the choice of S and T, of orders, and of what is drawn anew, in [0, 2**63).
        n_samples: size of S and of T, at least 4; as many as there are of both, if omitted.
        groups: names or globs of parameters for each layer; the layers of `layers.layer_table` if omitted. Other
            parameters stay frozen.
        controls: which to do; each takes as long as the measure itself.
        control: for `unseen-base`, a target that was trained on neither S nor T, or the images and labels (U) to train
            one on; if omitted, as many non-members as the target has members are taken that are not in T.
        precision: `auto` takes `bfloat16` where the processor has matrix units for it (AMX), else `float32`.
        n_threads: threads of PyTorch during the call; as they are if omitted.
        state: folder for finished units and the control base; it is made, and stays.
        cache_bytes: the most memory for what the frozen part gives; beyond, it lies in a file in `state`, or in the
            system's temporary folder.
        progress: told after every epoch.

    Returns:
        The exposures with all they were made from, findings in words, and warnings.

    Raises:
        DataError: no members or non-members, too few, the same ones, or labels that are no classes.
        TargetError: a model without parameters, groups that do not fit it, or a control base with other layers.
        UnsupportedModel: `torch.export` cannot capture it with any number of images, or it mixes those of a batch.
        UserError: settings out of range, a loss that is not finite, or no room for files.

    Reference:
        Mo et al., Towards Characterizing and Limiting Information Exposure in DNN Layers, CCS 2019, equations 1 to 4.
    """
    _check_settings(epochs, repeats, lr, batch_size, seed, cache_bytes, controls)
    settings = Settings(
        epochs=epochs, learning_rate=lr, batch_size=batch_size, seed=seed, precision=choose_precision(precision)
    )
    sets = choose_sets(target, n_samples=n_samples, seed=seed)
    with limited_threads(n_threads), tempfile.TemporaryDirectory(prefix="cloister-") as temporary:
        folder = Path(temporary) if state is None else make_folder(Path(state))
        network = _network(target, settings)
        layers = network.groups(groups)
        work = _Work(_samples(sets, network), settings, sets, folder, repeats, cache_bytes, progress)
        base = work.add(network, layers, ("target", "reinitialised") if "reinitialised" in controls else ("target",))
        unseen, unseen_base = ControlBase(), None
        if "unseen-base" in controls:
            unseen = control_base(target, control, sets, folder=folder, progress=progress)
        if unseen.target is not None:
            unseen_network = _like(layers, _network(unseen.target, settings), groups)
            unseen_base = work.add(unseen_network, layers, ("unseen-base",))
        runs = work.run()
    found = tuple(_layer(network, group, depth, runs) for depth, group in enumerate(layers))
    ranking, by_memorisation = statistics.rank(found), statistics.rank(found, statistics.memorisation_of)
    return Exposure(
        target=target.name,
        members_sha256=sets.members_sha256,
        nonmembers_sha256=sets.nonmembers_sha256,
        n_members=len(sets.s),
        n_nonmembers=len(sets.t),
        n_unseen=unseen.n_trained_on,
        epochs=epochs,
        learning_rate=lr,
        batch_size=batch_size,
        repeats=repeats,
        seed=seed,
        precision=settings.precision,
        base=base,
        unseen_base=unseen_base,
        layers=found,
        ranking=ranking,
        memorisation_ranking=by_memorisation,
        findings=statistics.describe(found, ranking, by_memorisation),
        warnings=(*sets.warnings, *unseen.warnings, *_warnings(base, runs, repeats)),
        runs=runs,
        seconds=sum(run.seconds for run in runs),
    )


def _check_settings(
    epochs: int, repeats: int, lr: float, batch_size: int, seed: int, cache_bytes: int, controls: Collection[Control]
) -> None:
    unknown = [name for name in controls if name not in CONTROLS]
    checks = [
        (epochs >= 1, f"at least 1 epoch, but got {epochs}"),
        (repeats >= 1, f"at least 1 repeat, but got {repeats}"),
        (0 < lr < math.inf, f"a positive learning rate, but got {lr}"),
        (batch_size >= 2, f"a batch size of at least 2, but got {batch_size}"),
        (0 <= seed < 2**63, f"a seed in [0, 2**63), but got {seed}"),
        (cache_bytes >= 0, f"a number of bytes, but got {cache_bytes}"),
        (not unknown, f"controls out of {', '.join(CONTROLS)}, but got {', '.join(unknown)}"),
    ]
    problems = [problem for holds, problem in checks if not holds]
    if problems:
        raise UserError("expected " + "; expected ".join(problems))


def make_folder(folder: Path) -> Path:
    """Make a state folder, if it is not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"state folder `{folder}` cannot be made: {error.strerror}") from error
    return folder


def _network(target: Target, settings: Settings) -> Network:
    return Network(target.model, tuple(target.input_shape), channels_last=settings.precision == "bfloat16")


def _like(layers: Sequence[Group], network: Network, groups: Mapping[str, Sequence[str]] | None) -> Network:
    """The network, if it has these layers."""
    own = [group.name for group in network.groups(groups)]
    if own != [group.name for group in layers]:
        raise TargetError(
            f"control base: expected the target's layers {', '.join(group.name for group in layers)}, "
            f"but it has {', '.join(own)}"
        )
    return network


def _samples(sets: Sets, network: Network) -> Samples:
    images, labels = sets.pair()
    return Samples(
        images=network.images(torch.from_numpy(images)), labels=torch.from_numpy(labels), n_members=len(sets.s)
    )


# --- units of work ---


class _Unit(NamedTuple):
    """One fine-tuning of one layer."""

    variant: Variant
    repeat: int
    fit: Fit


class _Work:
    """All fine-tunings, layer after layer; each is kept when it is done."""

    def __init__(
        self,
        samples: Samples,
        settings: Settings,
        sets: Sets,
        folder: Path,
        repeats: int,
        cache_bytes: int,
        progress: Progress | None,
    ) -> None:
        self._samples, self._settings, self._sets, self._folder = samples, settings, sets, folder
        self._repeats, self._cache_bytes, self._progress = repeats, cache_bytes, progress
        self._jobs: list[tuple[Network, Group, tuple[_Unit, ...]]] = []
        self._n_done = 0

    def add(self, network: Network, groups: Sequence[Group], variants: Sequence[Variant]) -> Reading:
        """Plan the fine-tunings of a model's layers, and read the model as it is."""
        units = tuple(
            _Unit(variant, repeat, fit)
            for variant in variants
            for repeat in range(self._repeats)
            for fit in (*_FITS, "half")
        )
        self._jobs += [(network, group, units) for group in groups]
        return read_whole(network, self._samples, self._settings)

    def run(self) -> tuple[Run, ...]:
        """Do what is not done yet."""
        return tuple(run for job in self._jobs for run in self._layer(*job))

    def _layer(self, network: Network, group: Group, units: tuple[_Unit, ...]) -> list[Run]:
        paths = {unit: self._folder / f"{self._key(network, group, unit)}.json" for unit in units}
        runs = {unit: run for unit, path in paths.items() if (run := _load(path, group, unit)) is not None}
        self._n_done += len(runs) * self._settings.epochs
        missing = [unit for unit in units if unit not in runs]
        if missing:
            cut, activations = self._cut(network, group)
            for unit in missing:
                runs[unit] = self._tune(network, cut, activations, unit)
                write_whole(paths[unit], msgspec.json.encode(runs[unit]), force=True)
        return [runs[unit] for unit in units]

    def _cut(self, network: Network, group: Group) -> tuple[Cut, Activations]:
        with self._settings.arithmetic():
            cut = cut_before(network, group, self._samples.images[:3])
        return cut, Activations(cut, self._samples, self._settings, folder=self._folder, bound_bytes=self._cache_bytes)

    def _tune(self, network: Network, cut: Cut, activations: Activations, unit: _Unit) -> Run:
        total = sum(len(units) for _, _, units in self._jobs) * self._settings.epochs
        what = f"{cut.group.name}, {unit.variant}, repeat {unit.repeat + 1} of {self._repeats}, {_WHAT[unit.fit]}"
        own = self._drawn(network, cut.group, unit.repeat, _REINITIALISED if unit.variant == "reinitialised" else None)
        replaced = own if unit.fit == "half" else None
        start = own if replaced is None else self._drawn(network, cut.group, unit.repeat, _REPLACEMENT)

        def on_epoch(epoch: int) -> None:
            self._n_done += 1
            if self._progress is not None:
                self._progress.update(self._n_done, total, what)

        return fine_tune(
            cut,
            activations,
            self._samples,
            start,
            self._settings,
            variant=unit.variant,
            repeat=unit.repeat,
            fit=unit.fit,
            on_epoch=on_epoch,
            replaced=replaced,
        )

    def _drawn(self, network: Network, group: Group, repeat: int, draw: int | None) -> dict[str, Tensor]:
        """A layer's parameters and buffers as they are, or drawn anew."""
        seed = None if draw is None else [self._settings.seed, repeat, draw]
        return initial_tensors(network, group, seed=seed)

    def _key(self, network: Network, group: Group, unit: _Unit) -> str:
        """Of all that a fine-tuning depends on, apart from the number of threads and the machine."""
        everything = [
            _UNIT_VERSION,
            str(torch.__version__),
            network.sha256,
            self._sets.members_sha256,
            self._sets.nonmembers_sha256,
            dataclasses.asdict(self._settings),
            dataclasses.asdict(group),
            unit,
        ]
        return hashlib.sha256(msgspec.json.encode(everything)).hexdigest()[:32]


def _load(path: Path, group: Group, unit: _Unit) -> Run | None:
    """A finished fine-tuning, or None; what cannot be read is done again."""
    try:
        run = msgspec.json.decode(path.read_bytes(), type=Run)
    except (OSError, msgspec.DecodeError):
        return None
    return run if (run.layer, run.variant, run.repeat, run.fit) == (group.name, *unit) else None


# --- the document ---


def _layer(network: Network, group: Group, depth: int, runs: Sequence[Run]) -> LayerExposure:
    own = [run for run in runs if run.layer == group.name]
    p, r = ([run for run in own if run.variant == "target" and run.fit == fit] for fit in _FITS)
    epochs = [reading.epoch for reading in p[0].readings]
    curve = [
        Point(epoch=epoch, comparison=_comparison(own, "target", at))
        for at, epoch in enumerate(epochs[:-1])
        if epoch  # before any fine-tuning both are the target
    ]
    steps = [run.equal_steps for run in r if run.equal_steps is not None]
    return LayerExposure(
        name=group.name,
        depth=depth,
        parameters=group.parameters,
        n_parameters=sum(network.tensors[name].numel() for name in group.parameters),
        measured=_comparison(own, "target"),
        curve=tuple(curve),
        equal_steps=statistics.compare([run.readings[-1] for run in p], steps, undefined=_undefined([*p, *r])),
        reinitialised=_comparison_if_done(own, "reinitialised"),
        unseen_base=_comparison_if_done(own, "unseen-base"),
        memorisation=Memorisation(
            measured=_memorisation(own, "target"),
            reinitialised=_memorisation_if_done(own, "reinitialised"),
            unseen_base=_memorisation_if_done(own, "unseen-base"),
        ),
    )


def _memorisation_if_done(runs: Sequence[Run], variant: Variant) -> Interval | None:
    return _memorisation(runs, variant) if any(run.variant == variant for run in runs) else None


def _memorisation(runs: Sequence[Run], variant: Variant) -> Interval:
    return statistics.memorisation(
        [run.held_out for run in runs if run.variant == variant and run.held_out is not None]
    )


def _comparison_if_done(runs: Sequence[Run], variant: Variant) -> Comparison | None:
    return _comparison(runs, variant) if any(run.variant == variant for run in runs) else None


def _comparison(runs: Sequence[Run], variant: Variant, at: int = -1) -> Comparison:
    of_variant = [run for run in runs if run.variant == variant and run.fit in _FITS]
    p, r = ([run.readings[at] for run in of_variant if run.fit == fit] for fit in _FITS)
    return statistics.compare(p, r, undefined=_undefined(of_variant))


def _undefined(runs: Sequence[Run]) -> str | None:
    return None if all(run.has_gradient for run in runs) else _NO_GRADIENT


def _warnings(base: Reading, runs: Sequence[Run], repeats: int) -> Iterator[str]:
    own = [run for run in runs if run.variant == "target" and run.fit in _FITS]
    if base.epsilon <= 1.96 * base.loss_error:
        yield f"the target's own gap {base.epsilon:.2g} cannot be told from 0: it shows no memory of its members"
    learnt = {
        run.layer: gain
        for run in own
        if run.fit == "p" and (gain := run.readings[-1].accuracy_members - base.accuracy_members) > _STILL_LEARNING
    }
    if learnt:
        most = max(learnt, key=lambda name: learnt[name])
        yield (
            f"the target had not converged: fine-tuning `{most}` alone on the members gains "
            f"{learnt[most]:.1%} accuracy on them ({len(learnt)} layers gain more than {_STILL_LEARNING:.0%})"
        )
    without = dict.fromkeys(run.layer for run in own if not run.has_gradient)
    if without:
        yield "no gradient reaches " + ", ".join(f"`{name}`" for name in without)
    if repeats == 1:
        yield SINGLE_REPEAT
