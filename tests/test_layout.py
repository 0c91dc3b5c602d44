"""The boundaries that ARCHITECTURE.md draws: who may include, import and print what."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "cloister"


def includes(folder):
    return {
        name
        for path in (ROOT / "native" / folder).rglob("*.[ch]")
        for name in re.findall(r"^#include [<\"](.+?)[>\"]", path.read_text(), re.MULTILINE)
    }


def own_headers(*folders):
    return {path.name for folder in folders for path in (ROOT / "native" / folder).rglob("*.h")}


def test_core_includes_nothing_of_a_system_or_a_tee():
    freestanding = {"float.h", "stdbool.h", "stddef.h", "stdint.h", "string.h"}
    freestanding |= {"arm_neon.h", "cpuid.h", "immintrin.h"}  # the compiler's: what an instruction set has
    assert {Path(name).name for name in includes("core")} <= freestanding | own_headers("core")


def test_trusted_application_includes_the_tee_api_and_nothing_of_posix():
    allowed = {"stdint.h", "stdbool.h", "stddef.h", "tee_internal_api.h"} | own_headers("core", "ta")
    assert includes("ta") <= allowed


def test_core_allocates_nothing():
    for path in (ROOT / "native" / "core").rglob("*.c"):
        assert not re.search(r"\b(malloc|calloc|realloc|free|alloca|printf)\s*\(", path.read_text()), path


def imported(path):
    """Modules that a file imports when it is itself imported."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


@pytest.mark.parametrize("folder", ["bundle", "emulator", "enclave", "planning"])
def test_what_runs_on_a_device_needs_no_torch(folder):
    for path in (SOURCE / folder).glob("*.py"):
        if path.name != "torch_stage.py":
            assert not {name.partition(".")[0] for name in imported(path)} & {"torch", "torchao", "sklearn"}, path


def test_imports_go_one_way():
    forbidden = {
        "attacks": ("cloister.cli", "cloister.reproduce"),
        "compile": ("cloister.cli", "cloister.demo", "cloister.protection", "cloister.enclave", "cloister.bundle"),
        "planning": ("cloister.cli", "cloister.protection", "cloister.enclave", "cloister.bundle", "cloister.compile"),
        "bundle": ("cloister.cli", "cloister.protection"),
        "emulator": ("cloister.cli", "cloister.protection"),
        "enclave": ("cloister.cli", "cloister.protection"),
        "exposure": ("cloister.cli", "cloister.protection", "cloister.enclave", "cloister.bundle", "cloister.planning"),
    }
    for folder, names in forbidden.items():
        for path in (SOURCE / folder).glob("*.py"):
            assert not [name for name in imported(path) if name.startswith(names)], path


def test_only_the_ui_prints():
    for path in SOURCE.rglob("*.py"):
        if path != SOURCE / "cli" / "ui.py":
            text = path.read_text()
            assert not re.search(r"(?<![\w.])print\(", text), path
            assert not re.search(r"^\s*(import rich|from rich)", text, re.MULTILINE), path
