"""The demo: a small model the whole way, from training to a protected run, with everything measured."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cloister.bundle.crossing import Crossing, crossings
from cloister.bundle.manifest import Manifest
from cloister.data import Dataset, load_dataset
from cloister.enclave.session import Session, Stats, load
from cloister.progress import Progress
from cloister.protection import lower_target, protect_lowered
from cloister.target import Target, load_target, with_members
from cloister.trainer import train

__all__ = ["Accuracy", "Agreement", "DemoResult", "run_demo"]

_MODEL = "vgg7"
_N_MEMBERS = 1200
_EPOCHS = 14
_BATCH_SIZE = 32
_INSIDE = "last:4"
#: Well below the weights of the layers inside, so that they are cut into slices and streamed.
BUDGET_BYTES = 12 << 10
_N_TIMINGS = 7

_Floats = npt.NDArray[np.float32]


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Top-1 accuracy on the test images, in [0, 1].

    Attributes:
        float32: of the model in PyTorch.
        int8: of the bundle with nothing inside.
        protected: of the bundle with its last layers inside.
    """

    float32: float
    int8: float
    protected: float


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Share of test images with the same top-1 answer, in [0, 1].

    Attributes:
        protected_int8: protected, and with nothing inside.
        int8_float32: with nothing inside, and in PyTorch.
    """

    protected_int8: float
    int8_float32: float


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo measured.

    Attributes:
        schema: kind and version of this document.
        seed: of everything that is drawn.
        model: name of the model.
        data: name of the data set.
        n_members: images trained on.
        n_test: images run.
        inside_layers: layers inside.
        outside_layers: layers outside.
        n_slices: slices that the layers inside are cut into.
        n_streamed: those of them that do not stay inside.
        inside_weight_bytes: weights of the layers inside.
        sealed_bytes: ciphertext in the bundle.
        accuracy: on the test images.
        agreement: between the ways of running.
        bit_equal: whether protected outputs have the same bits as those with nothing inside.
        budget_bytes: inside memory that might be used.
        inside_bytes: inside memory that was planned.
        inside_peak_bytes: inside memory that the enclave measured.
        time_ratio: median over pairs of runs, one behind the other, of protected time by time with nothing inside.
        n_timings: number of such pairs.
        bytes_in: payload into the enclave for each image.
        bytes_out: payload out of it for each image.
        slices_opened: openings in the first run of all images.
        crossings: the tensors that cross.
        isolation: what keeps the rest of the machine out of the enclave, in words.
    """

    schema: Literal["cloister.demo/1"] = "cloister.demo/1"
    seed: int
    model: str
    data: str
    n_members: int
    n_test: int
    inside_layers: tuple[str, ...]
    outside_layers: tuple[str, ...]
    n_slices: int
    n_streamed: int
    inside_weight_bytes: int
    sealed_bytes: int
    accuracy: Accuracy
    agreement: Agreement
    bit_equal: bool
    budget_bytes: int
    inside_bytes: int
    inside_peak_bytes: int
    time_ratio: float
    n_timings: int
    bytes_in: int
    bytes_out: int
    slices_opened: int
    crossings: tuple[Crossing, ...]
    isolation: str


class _Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The outputs of the three ways of running, and how they ran."""

    float32: _Floats
    int8: _Floats
    protected: _Floats
    time_ratio: float
    sealed_bytes: int
    stats: Stats


def run_demo(folder: Path, *, seed: int = 0, force: bool = False, progress: Progress | None = None) -> DemoResult:
    """Train, protect and run a small CNN on scikit-learn's digits, which need no download.

    Args:
        folder: where to write `model.safetensors`, `unprotected.cloister` and `protected.cloister`.
        seed: of weights, members and calibration, in [0, 2**63).
        force: overwrite these files.
        progress: told how far it is, or None.

    Returns:
        All that was measured.

    Raises:
        OutputExists: one of the files exists and `force` is not set.
        EnclaveError: the local enclave does not run.
    """
    dataset = load_dataset("digits")
    target = _train(folder, dataset, seed, force, progress)
    lowered = lower_target(target, bits=8, seed=seed, progress=progress)
    plain = protect_lowered(lowered, folder / "unprotected.cloister", inside="none", force=force)
    sealed = protect_lowered(
        lowered, folder / "protected.cloister", inside=_INSIDE, budget_bytes=BUDGET_BYTES, force=force
    )
    images = dataset.images(part="test")
    with load(plain.path) as unprotected, load(sealed.path) as protected:
        measured = _measure(target, unprotected, protected, images, progress)
    return _result(dataset, sealed.manifest, measured, seed)


def _train(folder: Path, dataset: Dataset, seed: int, force: bool, progress: Progress | None) -> Target:
    weights = folder / "model.safetensors"
    fresh = load_target(f"zoo:{_MODEL}", input_shape=dataset.input_shape, n_classes=dataset.n_classes, seed=seed)
    train(
        fresh,
        dataset,
        out=weights,
        epochs=_EPOCHS,
        n_members=_N_MEMBERS,
        seed=seed,
        batch_size=_BATCH_SIZE,
        precision="float32",  # the same weights on every kind of processor
        progress=progress,
        force=force,
    )
    return with_members(load_target(f"zoo:{_MODEL}", weights=weights), dataset)


def _measure(
    target: Target, unprotected: Session, protected: Session, images: _Floats, progress: Progress | None
) -> _Measured:
    """Run all images every way, then time pairs of runs: whatever slows the machine slows both of a pair."""
    assert isinstance(target.model, nn.Module)
    with torch.inference_mode():
        float32 = target.model(torch.from_numpy(images)).numpy()  # (N, K)
    int8, inside = unprotected.run(images), protected.run(images)
    stats = protected.stats
    ratios = []
    for i in range(_N_TIMINGS):
        seconds = [_time(session, images) for session in (unprotected, protected)]
        ratios.append(seconds[1] / seconds[0])
        if progress is not None:
            progress.update(i + 1, _N_TIMINGS, "timing pairs of runs")
    bundle = protected.bundle
    return _Measured(
        float32=float32,
        int8=int8,
        protected=inside,
        time_ratio=statistics.median(ratios),
        sealed_bytes=bundle.sealed_program.n_bytes + bundle.slices.n_bytes,
        stats=stats,
    )


def _time(session: Session, images: _Floats) -> float:
    start = time.perf_counter()
    session.run(images)
    return time.perf_counter() - start


def _result(dataset: Dataset, manifest: Manifest, measured: _Measured, seed: int) -> DemoResult:
    plan, stats, labels = manifest.plan, measured.stats, dataset.labels(part="test")
    return DemoResult(
        seed=seed,
        model=manifest.model,
        data=dataset.name,
        n_members=_N_MEMBERS,
        n_test=len(labels),
        inside_layers=tuple(layer.name for layer in plan.layers if layer.inside),
        outside_layers=tuple(layer.name for layer in plan.layers if not layer.inside),
        n_slices=len(manifest.slices),
        n_streamed=sum(not piece.resident for piece in manifest.slices),
        inside_weight_bytes=sum(layer.weight_bytes for layer in plan.layers if layer.inside),
        sealed_bytes=measured.sealed_bytes,
        accuracy=Accuracy(
            float32=_share(measured.float32.argmax(axis=1) == labels),
            int8=_share(measured.int8.argmax(axis=1) == labels),
            protected=_share(measured.protected.argmax(axis=1) == labels),
        ),
        agreement=Agreement(
            protected_int8=_share(measured.protected.argmax(axis=1) == measured.int8.argmax(axis=1)),
            int8_float32=_share(measured.int8.argmax(axis=1) == measured.float32.argmax(axis=1)),
        ),
        bit_equal=measured.protected.tobytes() == measured.int8.tobytes(),
        budget_bytes=BUDGET_BYTES,
        inside_bytes=stats.inside_bytes,
        inside_peak_bytes=stats.inside_peak_bytes,
        time_ratio=measured.time_ratio,
        n_timings=_N_TIMINGS,
        bytes_in=stats.bytes_in // stats.images,
        bytes_out=stats.bytes_out // stats.images,
        slices_opened=stats.slices_opened,
        crossings=crossings(manifest),
        isolation=stats.isolation or "",
    )


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean())
