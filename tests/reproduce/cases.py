"""Made-up exposures of VGG-7, and small data sets where the real ones would be."""

import numpy as np

from cloister.exposure.document import (
    Comparison,
    Exposure,
    Interval,
    LayerExposure,
    Memorisation,
    Point,
    Ranking,
    Ratio,
    Reading,
)
from cloister.reproduce.mo2019_paper import CONVOLUTIONS, DENSE

NAMES = (*CONVOLUTIONS, *DENSE)
SIZES = (160, 2320, 4640, 9248, 9248, 9248, 18496, 650)
#: As the paper describes them: rising, the dense layer between, the output layer low.
DESCRIBED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.63, 0.45, 0.15)


def ratio(value, p=1.0):
    """A single repeat: (p - r) / p; undefined if None."""
    r = p * (1 - (value or 0))
    single = {"low": None, "high": None}
    return Ratio(
        p=Interval(mean=p, **single),
        r=Interval(mean=r, **single),
        exposure=None if value is None else Interval(mean=value, **single),
        undefined="M_p's gap is 0" if value is None else None,
    )


def single(value):
    return Interval(mean=value, low=None, high=None)


def comparison(value, p=1.0):
    half = None if value is None else value / 2
    return Comparison(by_loss=ratio(value, p), by_accuracy=ratio(half, p))


def layers(values, *, p=1.0, anew=None, unseen=None):
    """Layers with these exposures; controls if their values are given."""
    none = [None] * len(values)
    return tuple(
        LayerExposure(
            name=name, depth=depth, parameters=(f"{name}.weight",), n_parameters=size,
            measured=comparison(value, p), curve=(Point(epoch=1, comparison=comparison(value, p)),),
            equal_steps=comparison(value, p),
            reinitialised=comparison(a, p) if anew else None, unseen_base=comparison(u, p) if unseen else None,
            memorisation=Memorisation(
                measured=single((value or 0.0) / 4),
                reinitialised=single(-0.01) if anew else None,
                unseen_base=single(0.02) if unseen else None,
            ),
        )
        for depth, (name, size, value, a, u) in enumerate(
            zip(NAMES, SIZES, values, anew or none, unseen or none, strict=True)
        )
    )  # fmt: skip


def reading(gap=1.0):
    return Reading(
        epoch=0, loss_members=0.1, loss_nonmembers=0.1 + gap, accuracy_members=1.0, accuracy_nonmembers=0.75,
        loss_error=0.01, accuracy_error=0.01,
    )  # fmt: skip


def exposure(values=DESCRIBED, *, epochs=20, warnings=(), **fields):
    """The document of one seed."""
    found = layers(values, **fields)
    return Exposure(
        target="vgg7", members_sha256="", nonmembers_sha256="", n_members=10, n_nonmembers=10, n_unseen=None,
        epochs=epochs, learning_rate=1e-3, batch_size=100, repeats=1, seed=0, precision="float32", base=reading(),
        unseen_base=reading(0.0) if fields.get("unseen") else None, layers=found,
        ranking=Ranking(layers=(), with_parameters=None, with_depth=None, capacity_explains=None),
        memorisation_ranking=Ranking(layers=(), with_parameters=None, with_depth=None, capacity_explains=None),
        findings=(), warnings=tuple(warnings), runs=(), seconds=2.0,
    )  # fmt: skip


def write_datasets(folder, n=90):
    """Random images under the names of the paper's data sets: `MNIST` (idx) and `cifar10.npz`."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8), np.arange(n) % 10
    np.savez(folder / "cifar10.npz", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
    (folder / "MNIST").mkdir()
    for part, size in (("train", n), ("t10k", 10)):
        for kind, array in (("images", x[:size, 0]), ("labels", y[:size].astype(np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / "MNIST" / f"{part}-{kind}-idx{array.ndim}-ubyte").write_bytes(head + array.tobytes())
