"""Public keys of devices: the text that is passed around, fingerprints, and what `--for` accepts.

A key file holds one line: `cloister-x25519`, the key in base64, and a comment that may be empty.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from pathlib import Path

from cloister.enclave.connect import ENCLAVES, enclave_info, is_enclave
from cloister.errors import UserError

__all__ = ["PUBLIC_KEY_BYTES", "check_devices", "fingerprint", "format_public_key", "parse_public_key", "recipients"]

PUBLIC_KEY_BYTES = 32
_KIND = "cloister-x25519"
_MAX_FILE_BYTES = 4096


def fingerprint(public_key: bytes) -> str:
    """The first 16 hexadecimal digits of the key's SHA-256: for people to compare, not for programs to trust."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def format_public_key(public_key: bytes, comment: str = "") -> str:
    """The line that `parse_public_key` reads, with a line feed.

    Args:
        public_key: 32 bytes.
        comment: a name for people; no line breaks.

    Raises:
        UserError: the key has another length, or the comment a line break.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise UserError(f"expected a public key of {PUBLIC_KEY_BYTES} bytes, but got {len(public_key)}")
    if comment != " ".join(comment.split()):
        raise UserError(f"expected a comment of words and single spaces, but got {comment!r}")
    words = [_KIND, base64.b64encode(public_key).decode(), comment]
    return " ".join(filter(None, words)) + "\n"


def parse_public_key(text: str, source: str = "the key") -> bytes:
    """Read the text of a `.pub` file.

    Args:
        text: one line; blank lines around it do no harm.
        source: where it comes from, for the message.

    Returns:
        The X25519 public key, 32 bytes.

    Raises:
        UserError: the text is anything else.
    """
    lines = text.strip().splitlines()
    words = lines[0].split() if len(lines) == 1 else []
    if len(words) < 2 or words[0] != _KIND:
        hint = "`cloister keys export` writes such a file"
        raise UserError(f"{source}: expected one line `{_KIND} BASE64 COMMENT`", hint)
    try:
        key = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{source}: expected the key in base64, but got `{words[1]}`") from error
    if len(key) != PUBLIC_KEY_BYTES:
        raise UserError(f"{source}: expected a key of {PUBLIC_KEY_BYTES} bytes, but got {len(key)}")
    return key


def recipients(names: Sequence[str]) -> list[bytes]:
    """The public keys of the devices that a bundle is made for.

    Args:
        names: for each device an enclave's name (`local`: this user's local enclave), or the path of a `.pub` file.

    Returns:
        One 32-byte key for each device, in the order given, each once.

    Raises:
        UserError: a name is neither, or a file is not a public key.
        EnclaveError: the enclave does not answer.
    """
    return list(dict.fromkeys(_recipient(name) for name in names))


def check_devices(names: Sequence[str]) -> None:
    """Refuse what `recipients` would refuse, without starting a local enclave.

    Args:
        names: see `recipients`.

    Raises:
        UserError: a name is neither an enclave nor a file with a public key.
        EnclaveError: an enclave is not there.
    """
    for name in names:
        if name != "local":
            _recipient(name)


def _recipient(name: str) -> bytes:
    return enclave_info(name).public_key if is_enclave(name) else _read_key(name)


def _read_key(name: str) -> bytes:
    path = Path(name)
    if not path.exists():
        known = f"known are {', '.join(ENCLAVES)}, and files with a public key (`.pub`)"
        raise UserError(f"there is no device or key file `{name}`", known)
    return parse_public_key(_read_text(path), str(path))


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise UserError(f"{path}: expected a public key, but the file is longer than {_MAX_FILE_BYTES} bytes")
        return data.decode("ascii")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected a public key in ASCII text") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
