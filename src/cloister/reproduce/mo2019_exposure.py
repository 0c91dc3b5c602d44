"""Figure 2 of Mo et al. (CCS 2019), done again: how much each layer of VGG-7 exposes, on three data sets.

The paper gives network, data sets and epochs (section 2.2), three values, and the order of the layers in words, but
neither optimiser nor learning rate nor the size of S and T: those are chosen here, and stand in the document. A seed
chooses S and T, trains a base of its own on S, and fine-tunes each layer of it once; intervals are over seeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import nn

from cloister import zoo
from cloister.checkpoint import load_checkpoint, load_weights
from cloister.data import Dataset, load_dataset
from cloister.errors import DataError, TargetError, UserError
from cloister.exposure import statistics
from cloister.exposure.document import Exposure, LayerExposure, Ranking, Reading
from cloister.exposure.measure import CONTROLS, SINGLE_REPEAT, make_folder, measure
from cloister.exposure.tuning import draw_anew
from cloister.outputs import write_whole
from cloister.progress import Named, Progress
from cloister.reproduce.mo2019_paper import (
    PAPER,
    Correlation,
    SetPair,
    Statement,
    agreement,
    judge,
    with_described_order,
)
from cloister.reproduce.over_seeds import layers_over_seeds
from cloister.target import Target, with_members
from cloister.trainer import Precision, TrainResult, choose_precision, train

__all__ = ["QUICK_EPOCHS", "Base", "ExposureDocument", "SetExposure", "reproduce"]

Widths = Literal["paper", "reversed"]

_BASE_EPOCHS, _LEARNING_RATE, _BATCH_SIZE = 20, 1e-3, 100
#: Fine-tuning epochs of a quick run: a quarter of the paper's.
QUICK_EPOCHS = {name: one.epochs // 4 for name, one in PAPER.items()}
#: The widths the other way round, so that the early layers hold the parameters.
_REVERSED = (32, 32, "M", 32, 16, "M", 16, 16, "M")
#: Where the widths are reversed: on two sets, of one seed.
_REVERSED_ON = ("fashion-mnist", "cifar10")


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """A trained network that was measured.

    Attributes:
        seed: of the choice of S and T, of weights and of orders.
        trained_on_s: loss and accuracy on S and T, A in the paper.
        unseen: those of the base that was trained on U; None if the controls were left out.
        exposures: of its layers, in their order; None where undefined.
        memorisations: likewise; never undefined.
        seconds: of its training and of all fine-tunings; training on U is not in it.
    """

    seed: int
    trained_on_s: Reading
    unseen: Reading | None
    exposures: tuple[float | None, ...]
    memorisations: tuple[float, ...]
    seconds: float


class SetExposure(msgspec.Struct, frozen=True, kw_only=True):
    """What was found on one data set.

    Attributes:
        data: its name.
        widths: of the layers: the paper's, or reversed.
        epochs: of each fine-tuning.
        bases: one for each seed.
        layers: where `measure` has repeats, these have seeds: intervals hold the noise of training and of the choice of
            S and T, too. Undefined in one seed is undefined. Controls are of the first seeds only.
        ranking: of the layers by exposure.
        memorisation_ranking: by memorisation, which the paper does not have.
        described_order: of the convolutions, with that of the paper's words: rising from the first to the last; None
            with reversed widths.
        described_order_with_dense: the same with the dense layer just below the last convolution; the paper says no
            more than that it is below it.
        findings: what the controls and the ranking say, in words, from the seeds that have controls.
    """

    data: str
    widths: Widths
    epochs: int
    bases: tuple[Base, ...]
    layers: tuple[LayerExposure, ...]
    ranking: Ranking
    memorisation_ranking: Ranking
    described_order: Correlation | None
    described_order_with_dense: Correlation | None
    findings: tuple[str, ...]


class ExposureDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The figure with the paper's values beside it.

    Attributes:
        schema: name and version of this document.
        model: the network.
        n_samples: images in S, in T, and in U.
        n_seeds: for each data set.
        n_controlled: of these, with controls.
        base_epochs: of the bases.
        learning_rate: of Adam; the peak of a one-cycle schedule for the bases, constant in fine-tuning.
        batch_size: largest number of images in one step.
        precision: `float32` or `bfloat16` arithmetic.
        sets: the data sets.
        reversed: the network with reversed widths, one seed.
        agreement: between each two data sets, of exposure.
        memorisation_agreement: likewise of memorisation.
        statements: the paper's, and whether they hold here.
        warnings: what makes the figures less sure.
        seconds: of trainings and fine-tunings, also of those done before an interruption.
    """

    schema: Literal["cloister.mo2019-exposure/1"] = "cloister.mo2019-exposure/1"
    model: str = "vgg7"
    n_samples: int
    n_seeds: int
    n_controlled: int
    base_epochs: int
    learning_rate: float
    batch_size: int
    precision: str
    sets: tuple[SetExposure, ...]
    reversed: tuple[SetExposure, ...]
    agreement: tuple[SetPair, ...]
    memorisation_agreement: tuple[SetPair, ...]
    statements: tuple[Statement, ...]
    warnings: tuple[str, ...]
    seconds: float


def reproduce(
    data: Path | str | None,
    *,
    sets: Sequence[str] = tuple(PAPER),
    n_samples: int = 10_000,
    n_seeds: int = 3,
    n_controlled: int = 1,
    epochs: Mapping[str, int] | None = None,
    precision: Precision = "auto",
    state: Path | None = None,
    progress: Progress | None = None,
) -> ExposureDocument:
    """Do the figure again.

    First all seeds are measured, then the controls, then the network with reversed widths. Everything that is finished
    is kept in `state`: the same call goes on after an interruption, and with more seeds or controls. Several processes
    may share a folder, if each has data sets of its own.

    Args:
        data: folder with `MNIST`, `FashionMNIST` and `cifar10.npz`; $CLOISTER_DATA if None.
        sets: names out of `PAPER`.
        n_samples: size of S, T and U each, disjoint parts of the training split; at least 2.
        n_seeds: bases for each data set, at least 1; intervals need 2.
        n_controlled: seeds with controls, each of which takes three times as long; with any, the widths are reversed on
            two data sets, too.
        epochs: of each fine-tuning by name of the set; the paper's if omitted.
        precision: see `cloister.measure`.
        state: folder for finished work; it is made, and stays. If None, nothing is kept.
        progress: told after every step of training and every epoch of fine-tuning.

    Raises:
        DataError: data sets that are not there, cannot be read, or are too small.
        UserError: settings out of range, or a state folder that cannot be used.
    """
    _check_settings(sets, n_samples, n_seeds, n_controlled)
    datasets = _load_datasets(data, sets, n_samples)
    with tempfile.TemporaryDirectory(prefix="cloister-") if state is None else contextlib.nullcontext(state) as folder:
        work = _Work(datasets, n_samples, dict(epochs or {}), precision, make_folder(Path(folder)), progress)
        jobs = list(_jobs(list(datasets), n_seeds, n_controlled))
        done: dict[tuple[str, Widths, int], _Measured] = {}
        for place, job in enumerate(jobs, start=1):
            done[job.data, job.widths, job.seed] = work.run(job, f"{place} of {len(jobs)}: {_text(job)}")
    found = [
        _pooled(name, widths, [one for (data, of, _), one in done.items() if (data, of) == (name, widths)])
        for name, widths in dict.fromkeys((name, widths) for name, widths, _ in done)
    ]
    return _document(found, done, n_samples, n_seeds, n_controlled)


def _check_settings(sets: Sequence[str], n_samples: int, n_seeds: int, n_controlled: int) -> None:
    unknown = [name for name in sets if name not in PAPER]
    checks = [
        (bool(sets) and not unknown, f"data sets out of {', '.join(PAPER)}, but got {', '.join(unknown) or 'none'}"),
        (n_samples >= 2, f"at least 2 samples, but got {n_samples}"),
        (n_seeds >= 1, f"at least 1 seed, but got {n_seeds}"),
        (0 <= n_controlled <= n_seeds, f"controls of 0 to {n_seeds} seeds, but got {n_controlled}"),
    ]
    problems = [problem for holds, problem in checks if not holds]
    if problems:
        raise UserError("expected " + "; expected ".join(problems))


def _load_datasets(data: Path | str | None, sets: Sequence[str], n_samples: int) -> dict[str, Dataset]:
    folder = data or os.environ.get("CLOISTER_DATA")
    names = [PAPER[name].file for name in PAPER if name in sets]
    if not folder:
        raise DataError(
            f"expected a folder with {', '.join(f'`{name}`' for name in names)}, but none is given",
            "name it with --data or CLOISTER_DATA; MNIST and Fashion-MNIST as folders of idx files, CIFAR-10 as .npz",
        )
    found = {name: load_dataset(str(Path(folder) / PAPER[name].file)) for name in PAPER if name in sets}
    for name, dataset in found.items():
        if dataset.n_train < 3 * n_samples:
            raise DataError(
                f"data set `{name}`: expected {3 * n_samples:,} training images for S, T and U, "
                f"but it has {dataset.n_train:,}",
                f"take at most {dataset.n_train // 3} samples",
            )
    return found


# --- work ---


class _Job(NamedTuple):
    """A base, and the measure of it."""

    data: str
    widths: Widths
    seed: int
    controls: bool


class _Measured(NamedTuple):
    """What came of a job."""

    seed: int
    training: TrainResult
    exposure: Exposure


def _jobs(sets: Sequence[str], n_seeds: int, n_controlled: int) -> Iterator[_Job]:
    """In the order of what is wanted first."""
    for controls, n in ((False, n_seeds), (True, n_controlled)):
        for seed in range(n):
            yield from (_Job(name, "paper", seed, controls) for name in sets)
    if n_controlled:
        yield from (_Job(name, "reversed", 0, False) for name in _REVERSED_ON if name in sets)


def _text(job: _Job) -> str:
    with_controls = ", controls" if job.controls else ""
    return f"{_where(job.data, job.widths, job.seed)}{with_controls}"


def _where(data: str, widths: Widths, seed: int) -> str:
    return f"{data}, seed {seed}" + (", widths reversed" if widths == "reversed" else "")


@dataclasses.dataclass(frozen=True)
class _Work:
    """Trains and measures; what is finished is kept in the folder."""

    datasets: Mapping[str, Dataset]
    n_samples: int
    epochs: Mapping[str, int]
    precision: Precision
    folder: Path
    progress: Progress | None

    def run(self, job: _Job, text: str) -> _Measured:
        """Do a job, or what is not finished of it."""
        progress = Named(self.progress, text)
        target, training = self._base(job, progress)
        exposure = measure(
            with_members(target, self.datasets[job.data]),
            epochs=self.epochs.get(job.data, PAPER[job.data].epochs),
            repeats=1,
            lr=_LEARNING_RATE,
            batch_size=_BATCH_SIZE,
            seed=job.seed,
            n_samples=self.n_samples,
            controls=CONTROLS if job.controls else (),
            precision=self.precision,
            state=self.folder,
            progress=progress,
        )
        return _Measured(job.seed, training, exposure)

    def _base(self, job: _Job, progress: Progress) -> tuple[Target, TrainResult]:
        """The base, trained now or before; what cannot be read is trained again."""
        dataset = self.datasets[job.data]
        target = _untrained(dataset, job)
        path = self.folder / f"base-{self._key(job)}.safetensors"
        if _training(path) is None:
            result = train(
                target,
                dataset,
                out=path,
                epochs=_BASE_EPOCHS,
                n_members=self.n_samples,
                seed=job.seed,
                lr=_LEARNING_RATE,
                batch_size=_BATCH_SIZE,
                precision=self.precision,
                progress=Named(progress, "base"),
                force=True,
            )
            write_whole(path.with_suffix(".json"), msgspec.json.encode(result), force=True)
        training = _training(path)
        assert training is not None
        tensors, checkpoint = load_checkpoint(path)
        assert isinstance(target.model, nn.Module)
        load_weights(target.model, tensors, f"base `{path}`")
        return dataclasses.replace(target, checkpoint=checkpoint), training

    def _key(self, job: _Job) -> str:
        """Of all that a training depends on, apart from the number of threads and the machine."""
        everything = [
            str(torch.__version__),
            job.widths,
            job.seed,
            self.datasets[job.data].sha256,
            self.n_samples,
            choose_precision(self.precision),
            (_BASE_EPOCHS, _LEARNING_RATE, _BATCH_SIZE),
        ]
        return hashlib.sha256(msgspec.json.encode(everything)).hexdigest()[:32]


def _training(path: Path) -> TrainResult | None:
    """What a finished training gave; None if there is none, or if it cannot be read."""
    try:
        load_checkpoint(path)
        return msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=TrainResult)
    except (OSError, msgspec.DecodeError, TargetError):
        return None


def _untrained(dataset: Dataset, job: _Job) -> Target:
    shape, n_classes = dataset.input_shape, dataset.n_classes
    if job.widths == "paper":
        model = zoo.build("vgg7", input_shape=shape, n_classes=n_classes, seed=job.seed)
    else:
        model = _reversed(shape, n_classes, job.seed)
    name = "vgg7" if job.widths == "paper" else "vgg7, widths reversed"
    return Target(model=model, name=name, input_shape=shape, n_classes=n_classes)


def _reversed(shape: tuple[int, int, int], n_classes: int, seed: int) -> nn.Module:
    """VGG-7 with `_REVERSED` widths and the layers' names of `zoo:vgg7`, drawn as that is."""
    n_channels, height, width = shape
    features: list[nn.Module] = []
    for entry in _REVERSED:
        if isinstance(entry, int):
            features += [nn.Conv2d(n_channels, entry, 3, padding=1), nn.ReLU()]
            n_channels = entry
        else:
            features.append(nn.MaxPool2d(2))
    n_features = n_channels * (height // 8) * (width // 8)
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*features))
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", nn.Sequential(nn.Linear(n_features, 64), nn.ReLU(), nn.Linear(64, n_classes)))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        draw_anew(name, parameter, generator)
    return model.eval()


# --- the document ---


def _pooled(data: str, widths: Widths, measured: Sequence[_Measured]) -> SetExposure:
    """All seeds of a data set as one."""
    exposures = [one.exposure for one in measured]
    layers = layers_over_seeds(exposures)
    controlled = [one for one in exposures if one.unseen_base is not None]
    ranking, by_memorisation = statistics.rank(layers), statistics.rank(layers, statistics.memorisation_of)
    values = {layer.name: _mean(layer) for layer in layers}
    is_paper = widths == "paper"
    return SetExposure(
        data=data,
        widths=widths,
        epochs=exposures[0].epochs,
        bases=tuple(_base(one) for one in measured),
        layers=layers,
        ranking=ranking,
        memorisation_ranking=by_memorisation,
        described_order=with_described_order(values) if is_paper else None,
        described_order_with_dense=with_described_order(values, with_dense=True) if is_paper else None,
        findings=statistics.describe(layers_over_seeds(controlled) if controlled else layers, ranking, by_memorisation),
    )


def _base(measured: _Measured) -> Base:
    found = measured.exposure
    return Base(
        seed=measured.seed,
        trained_on_s=found.base,
        unseen=found.unseen_base,
        exposures=tuple(_mean(layer) for layer in found.layers),
        memorisations=tuple(layer.memorisation.measured.mean for layer in found.layers),
        seconds=measured.training.seconds + found.seconds,
    )


def _mean(layer: LayerExposure) -> float | None:
    found = layer.measured.by_loss.exposure
    return None if found is None else found.mean


def _document(
    found: Sequence[SetExposure],
    done: Mapping[tuple[str, Widths, int], _Measured],
    n_samples: int,
    n_seeds: int,
    n_controlled: int,
) -> ExposureDocument:
    sets = [one for one in found if one.widths == "paper"]
    layers = {one.data: one.layers for one in sets}
    seeds = {one.data: [base.exposures for base in one.bases] for one in sets}
    pairs = agreement({data: {one.name: _mean(one) for one in own} for data, own in layers.items()})
    return ExposureDocument(
        n_samples=n_samples,
        n_seeds=n_seeds,
        n_controlled=n_controlled,
        base_epochs=_BASE_EPOCHS,
        learning_rate=_LEARNING_RATE,
        batch_size=_BATCH_SIZE,
        precision=next(iter(done.values())).exposure.precision,
        sets=tuple(sets),
        reversed=tuple(one for one in found if one.widths == "reversed"),
        agreement=pairs,
        memorisation_agreement=agreement(
            {data: {one.name: one.memorisation.measured.mean for one in own} for data, own in layers.items()}
        ),
        statements=judge(layers, seeds, pairs),
        warnings=tuple(_warnings(done)),
        seconds=sum(base.seconds for one in found for base in one.bases),
    )


def _warnings(done: Mapping[tuple[str, Widths, int], _Measured]) -> Iterator[str]:
    for (data, widths, seed), measured in done.items():
        where = _where(data, widths, seed)
        yield from (f"{where}: {text}" for text in measured.exposure.warnings if text != SINGLE_REPEAT)
