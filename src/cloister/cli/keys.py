"""`cloister keys`: the public key of an enclave, for those who make bundles for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
import msgspec

from cloister.cli import options, ui
from cloister.outputs import check_output, write_whole

__all__ = ["keys"]


class KeyDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `cloister keys … -f json` prints."""

    schema: Literal["cloister.key/1"] = "cloister.key/1"
    enclave: str
    fingerprint: str
    public_key: str
    path: str | None = None


@click.group()
def keys() -> None:
    """Show or export an enclave's public key.

    A bundle opens only in the enclaves that it was made for, see `cloister protect --for`. Private keys are made
    inside and never leave.
    """


@keys.command()
@options.enclave
@options.output_format
def show(enclave: str, format: str) -> None:
    """Print the public key and its fingerprint."""
    _print(_document(enclave), format)


@keys.command()
@click.argument("file", metavar="FILE.pub", type=options.FILE)
@options.enclave
@options.force
@options.output_format
def export(file: Path, enclave: str, force: bool, format: str) -> None:
    """Write the public key to FILE.pub.

    Whoever makes a bundle for this device gives it to `cloister protect --for`.
    """
    check_output(file, force=force)
    document = _document(enclave)
    from cloister.bundle.keys import format_public_key

    line = format_public_key(bytes.fromhex(document.public_key), enclave)
    write_whole(file, line.encode(), force=force)
    _print(msgspec.structs.replace(document, path=str(file)), format)


def _document(enclave: str) -> KeyDocument:
    from cloister.bundle.keys import fingerprint
    from cloister.enclave.connect import enclave_info

    key = enclave_info(enclave).public_key
    return KeyDocument(enclave=enclave, fingerprint=fingerprint(key), public_key=key.hex())


def _print(document: KeyDocument, format: str) -> None:
    if format == "json":
        ui.json(document)
        return
    rows = [
        ("enclave", document.enclave),
        ("fingerprint", document.fingerprint),
        ("public key", document.public_key),
    ]
    ui.fields("", [*rows, ("written to", document.path)] if document.path else rows)
