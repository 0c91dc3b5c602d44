"""Read and write `.cloister` files. Format: `docs/spec/bundle.md`.

Layout: header (64), manifest, recipients (112 each), sealed program, sealed slices, outside parts, digest (32).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import mmap
import os
import secrets
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from cloister.bundle.checks import check_manifest
from cloister.bundle.manifest import Manifest
from cloister.errors import BundleError, UserError
from cloister.outputs import written_whole

__all__ = ["TAG_BYTES", "Bundle", "Recipient", "Section", "read_bundle", "sealed_slice_bytes", "write_bundle"]

_MAGIC = b"CLOISTER"
_VERSION = 1
_HEADER = struct.Struct("<8sII16sQQQQ")
_RECIPIENT = struct.Struct("<32s32s48s")
_DIGEST_BYTES = 32
_HASH_BYTES = 1 << 20
#: What sealing adds to what is sealed: a tag, as long in every suite.
TAG_BYTES = 16
#: A program is at least a header of 64 bytes.
_MIN_SEALED_PROGRAM_BYTES = 64 + TAG_BYTES


@dataclasses.dataclass(frozen=True)
class Recipient:
    """A device that may open the bundle.

    Attributes:
        public_key: its X25519 public key, 32 bytes.
        enc: HPKE's encapsulated key, 32 bytes.
        sealed_key: the content key sealed to the device, with tag, 48 bytes.
    """

    public_key: bytes
    enc: bytes
    sealed_key: bytes


@dataclasses.dataclass(frozen=True)
class Section:
    """A run of bytes of the file.

    Attributes:
        offset: from the start of the file.
        n_bytes: length.
    """

    offset: int
    n_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """An open bundle, checked except for what only the enclave can check.

    A context manager; the file stays open until it is closed.

    Attributes:
        path: where it was read from.
        bundle_id: 16 random bytes.
        manifest: what is known of it in the clear.
        manifest_sha256: of the manifest's bytes in the file.
        recipients: the devices that may open it.
        sealed_program: where the sealed inside program lies in the file; empty if nothing is inside.
        slices: where the sealed slices lie, one behind the other.
        outside: where the outside parts lie.
        file: the open file; an enclave is handed its descriptor.
    """

    path: Path
    bundle_id: bytes
    manifest: Manifest
    manifest_sha256: bytes
    recipients: tuple[Recipient, ...]
    sealed_program: Section
    slices: Section
    outside: Section
    file: BinaryIO
    _map: mmap.mmap

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return len(self._map)

    def part(self, index: int) -> bytes:
        """The bytes of an outside part.

        Args:
            index: into `manifest.parts`.
        """
        part = self.manifest.parts[index]
        start = self.outside.offset + part.offset
        return self._map[start : start + part.n_bytes]

    def close(self) -> None:
        """Close the file."""
        self._map.close()
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- Reading -----------------------------------------------------------------------------------------------------


def read_bundle(path: Path | str) -> Bundle:
    """Open a bundle and check everything that can be checked without its content key.

    Args:
        path: the `.cloister` file.

    Returns:
        The bundle. Close it, or use it as a context manager.

    Raises:
        BundleError: the file is damaged, inconsistent, or of another version.
        UserError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    with contextlib.ExitStack() as on_error:
        try:
            file = on_error.enter_context(path.open("rb"))
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes < _HEADER.size + _DIGEST_BYTES:
                raise BundleError(
                    f"{path}: expected a bundle of at least {_HEADER.size + _DIGEST_BYTES} bytes, but got {n_bytes}"
                )
            data = on_error.enter_context(mmap.mmap(file.fileno(), n_bytes, access=mmap.ACCESS_READ))
        except OSError as error:
            hint = "`cloister protect` makes a bundle" if isinstance(error, FileNotFoundError) else None
            raise UserError(f"{path}: cannot be read: {error.strerror}", hint) from error
        try:
            bundle = _parse(path, file, data)
        except BundleError as error:
            raise BundleError(f"{path}: {error}", error.hint) from error
        on_error.pop_all()
        return bundle


@dataclasses.dataclass
class _Cursor:
    """Hands out runs of bytes one behind the other, and never more than there are."""

    data: mmap.mmap
    at: int
    end: int

    def section(self, n_bytes: int, what: str) -> Section:
        """The next run."""
        if n_bytes > self.end - self.at:
            left = self.end - self.at
            raise BundleError(f"expected {n_bytes} bytes of {what}, but only {left} are left in the file")
        section = Section(self.at, n_bytes)
        self.at += n_bytes
        return section

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next run's bytes."""
        section = self.section(n_bytes, what)
        return self.data[section.offset : self.at]


def _parse(path: Path, file: BinaryIO, data: mmap.mmap) -> Bundle:
    cursor = _Cursor(data, 0, len(data) - _DIGEST_BYTES)
    header = _HEADER.unpack(cursor.take(_HEADER.size, "header"))
    magic, version, n_recipients, bundle_id, manifest_bytes, program_bytes, slices_bytes, outside_bytes = header
    if magic != _MAGIC:
        raise BundleError(f"expected a bundle, which starts with {_MAGIC!r}, but got {magic!r}")
    if version != _VERSION:
        raise _other_version(data, version, manifest_bytes)
    manifest_json = cursor.take(manifest_bytes, "manifest")
    entries = cursor.take(_RECIPIENT.size * n_recipients, f"{n_recipients} recipients")
    sealed_program = cursor.section(program_bytes, "sealed program")
    slices = cursor.section(slices_bytes, "slices")
    outside = cursor.section(outside_bytes, "outside parts")
    if cursor.at != cursor.end:
        raise BundleError(f"expected the file to end with its digest, but {cursor.end - cursor.at} bytes are between")
    _check_hash(data, Section(0, cursor.end), data[cursor.end :].hex(), "the file")
    manifest = _decode_manifest(manifest_json)
    bundle = Bundle(
        path=path,
        bundle_id=bundle_id,
        manifest=manifest,
        manifest_sha256=hashlib.sha256(manifest_json).digest(),
        recipients=tuple(Recipient(*entry) for entry in _RECIPIENT.iter_unpack(entries)),
        sealed_program=sealed_program,
        slices=slices,
        outside=outside,
        file=file,
        _map=data,
    )
    check_manifest(manifest)
    _check_sections(bundle)
    _check_parts(bundle)
    return bundle


def _decode_manifest(data: bytes) -> Manifest:
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        made_by = _made_by(data)
        raise BundleError(f"the manifest{made_by} does not follow its schema: {error}") from error


def _other_version(data: mmap.mmap, version: int, manifest_bytes: int) -> BundleError:
    # Another version may have another layout: if no manifest is where ours would be, its maker stays unknown.
    start = _HEADER.size
    made_by = _made_by(data[start : min(start + manifest_bytes, len(data))])
    return BundleError(
        f"expected bundle format {_VERSION}, but the file{made_by} has format {version}",
        "open it with the version of cloister that made it, or protect the model again",
    )


class _Maker(msgspec.Struct):
    cloister: str


def _made_by(manifest_json: bytes) -> str:
    """Which version wrote a manifest that cannot be read, as far as it can be told."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        maker = msgspec.json.decode(manifest_json, type=_Maker).cloister
        return f" (made by cloister {maker[:40]})"
    return ""


def _check_sections(bundle: Bundle) -> None:
    """Either everything that belongs to an inside is there, or nothing of it."""
    inside = any(step.world == "inside" for step in bundle.manifest.steps)
    found = {
        "sealed program": bundle.sealed_program.n_bytes,
        "recipients": len(bundle.recipients),
        "slices": bundle.slices.n_bytes,
    }
    if not inside and (any(found.values()) or bundle.manifest.slices):
        raise BundleError("no step is inside, but the file has a sealed program, recipients or slices")
    if inside and not (found["sealed program"] and found["recipients"]):
        raise BundleError("a step is inside, but the file has no sealed program or no recipients")
    if inside and found["sealed program"] < _MIN_SEALED_PROGRAM_BYTES:
        raise BundleError(f"expected a sealed program, but got {found['sealed program']} bytes")
    expected = sum(sealed_slice_bytes(bundle.manifest))
    if found["slices"] != expected:
        raise BundleError(f"expected sealed slices of {expected} bytes, but got {found['slices']}")


def sealed_slice_bytes(manifest: Manifest) -> list[int]:
    """Bytes of each sealed slice, in index order."""
    return [piece.n_bytes + TAG_BYTES for piece in manifest.slices]


def _check_parts(bundle: Bundle) -> None:
    n_bytes = sum(part.n_bytes for part in bundle.manifest.parts)
    if n_bytes != bundle.outside.n_bytes:
        raise BundleError(f"expected outside parts of {n_bytes} bytes in all, but got {bundle.outside.n_bytes}")
    for index, part in enumerate(bundle.manifest.parts):
        section = Section(bundle.outside.offset + part.offset, part.n_bytes)
        _check_hash(bundle._map, section, part.sha256, f"outside part {index} ({part.kind})")


def _check_hash(data: mmap.mmap, section: Section, expected: str, what: str) -> None:
    digest = hashlib.sha256()
    end = section.offset + section.n_bytes
    for start in range(section.offset, end, _HASH_BYTES):
        digest.update(data[start : min(start + _HASH_BYTES, end)])
    if digest.hexdigest() != expected:
        raise BundleError(f"{what} is damaged: expected SHA-256 {expected[:16]}…, but got {digest.hexdigest()[:16]}…")


# --- Writing -----------------------------------------------------------------------------------------------------


def write_bundle(
    path: Path | str,
    *,
    manifest: Manifest,
    program: bytes | None,
    slices: Sequence[bytes],
    outside: Sequence[bytes],
    recipients: Sequence[bytes],
    force: bool = False,
) -> None:
    """Seal a model's inside and write the bundle, all of it or nothing.

    Args:
        path: the file to write.
        manifest: what is told of it in the clear.
        program: the inside program in the clear, or None if nothing is inside.
        slices: its slices in the clear, in index order.
        outside: the bytes of the manifest's parts, in order.
        recipients: X25519 public keys (32 bytes each) of the devices that may open it.
        force: overwrite an existing file.

    Raises:
        OutputExists: the file exists and `force` is not given.
        UserError: a public key is unusable, or the file cannot be written.
        BundleError: the parts contradict each other; nothing is written.
    """
    path = Path(path)
    with written_whole(path, force=force) as temporary:
        _write_file(temporary, _seal(manifest, program, slices, outside, recipients))
        # What was written is checked by the reader's own rules before it takes its place.
        read_bundle(temporary).close()


def _seal(
    manifest: Manifest,
    program: bytes | None,
    slices: Sequence[bytes],
    outside: Sequence[bytes],
    recipients: Sequence[bytes],
) -> list[bytes]:
    """Everything before the digest, in order."""
    from cloister.bundle import sealing  # a device that only runs bundles needs no `cryptography`

    bundle_id, content_key = secrets.token_bytes(16), secrets.token_bytes(sealing.CONTENT_KEY_BYTES)
    manifest_json = msgspec.json.encode(manifest)
    manifest_sha256 = hashlib.sha256(manifest_json).digest()
    suite = manifest.suite
    keys = [sealing.seal_content_key(content_key, key, bundle_id=bundle_id, suite=suite) for key in recipients]
    sealed_program, sealed_slices = b"", []
    if program is not None:
        sealed_program = sealing.seal_program(
            content_key, program, suite=suite, bundle_id=bundle_id, manifest_sha256=manifest_sha256
        )
        program_sha256 = hashlib.sha256(program).digest()
        sealed_slices = [
            sealing.seal_slice(
                content_key,
                data,
                suite=suite,
                bundle_id=bundle_id,
                program_sha256=program_sha256,
                index=index,
                n_slices=len(slices),
            )
            for index, data in enumerate(slices)
        ]
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        len(recipients),
        bundle_id,
        len(manifest_json),
        len(sealed_program),
        sum(map(len, sealed_slices)),
        sum(map(len, outside)),
    )
    return [header, manifest_json, *keys, sealed_program, *sealed_slices, *outside]


def _write_file(path: Path, sections: Sequence[bytes]) -> None:
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for section in sections:
            digest.update(section)
            file.write(section)
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())
