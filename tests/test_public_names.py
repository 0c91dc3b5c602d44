"""The package's public names."""

import subprocess
import sys

import cloister

NAMES = [
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


def test_public_names_are_these():
    assert cloister.__all__ == NAMES


def test_public_names_stay_what_they_are_whatever_is_imported():
    """A submodule of a public name would take its place when it is imported."""
    code = """
import importlib, pkgutil, types, cloister
for module in pkgutil.iter_modules(cloister.__path__):
    if not module.name.startswith("_"):
        importlib.import_module(f"cloister.{module.name}")
assert not [n for n in cloister.__all__ if isinstance(getattr(cloister, n), types.ModuleType)]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_neither_torch_nor_numpy():
    code = "import sys, cloister; assert not {'torch', 'numpy', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
