"""Cloister keeps the part of a neural network that remembers its training data inside an enclave.

The names below are loaded when they are first used: a device that only runs bundles needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cloister.errors import CloisterError

if TYPE_CHECKING:
    from cloister.data import Dataset, load_dataset
    from cloister.enclave.session import Session, Stats, load
    from cloister.exposure.document import Exposure
    from cloister.exposure.measure import measure
    from cloister.protection import Protected, protect
    from cloister.target import Target, load_target
    from cloister.trainer import TrainResult, train

__version__ = "0.1.0"

__all__ = [
    "CloisterError",
    "Dataset",
    "Exposure",
    "Protected",
    "Session",
    "Stats",
    "Target",
    "TrainResult",
    "load",
    "load_dataset",
    "load_target",
    "measure",
    "protect",
    "train",
]

_HOMES = {
    "Dataset": "data",
    "Exposure": "exposure.document",
    "Protected": "protection",
    "Session": "enclave.session",
    "Stats": "enclave.session",
    "Target": "target",
    "TrainResult": "trainer",
    "load": "enclave.session",
    "load_dataset": "data",
    "load_target": "target",
    "measure": "exposure.measure",
    "protect": "protection",
    "train": "trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `cloister` has no attribute `{name}`")
    return getattr(importlib.import_module(f"cloister.{_HOMES[name]}"), name)
