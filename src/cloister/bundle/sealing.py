"""Sealing of the inside: content key, program and slices. Format: `docs/spec/bundle.md`.

Only the maker of a bundle comes here. What is sealed opens in an enclave and nowhere else, so there is no inverse.
"""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM
from cryptography.hazmat.primitives.hpke import Suite as Hpke

from cloister.boards import SUITES, Suite
from cloister.errors import UserError

__all__ = ["CONTENT_KEY_BYTES", "seal_content_key", "seal_program", "seal_slice"]

CONTENT_KEY_BYTES = 32
_PROGRAM_NONCE_WORD = 0xFFFFFFFF
_CIPHERS: dict[Suite, type[AESGCM] | type[ChaCha20Poly1305]] = {
    "AES-256-GCM": AESGCM,
    "ChaCha20-Poly1305": ChaCha20Poly1305,
}


def seal_content_key(content_key: bytes, public_key: bytes, *, bundle_id: bytes, suite: Suite) -> bytes:
    """Seal the content key to one device.

    Args:
        content_key: 32 random bytes, used for this bundle only.
        public_key: the device's X25519 public key, 32 bytes.
        bundle_id: 16 bytes.
        suite: the only one that the key is good for.

    Returns:
        The recipient's entry, 112 bytes: public key, `enc`, ciphertext with tag.

    Raises:
        UserError: the public key is not a usable one.
    """
    hpke = Hpke(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    info = b"cloister-bundle-1" + bundle_id + struct.pack("<I", SUITES[suite])
    try:
        key = X25519PublicKey.from_public_bytes(public_key)
        sealed = hpke.encrypt(content_key, key, info=info)
    except ValueError as error:
        # A point of small order is refused here: anybody could compute what is agreed on with it.
        message = f"expected a device's X25519 public key, but nothing can be sealed to {public_key.hex()}"
        raise UserError(message, "ask the device for its key again") from error
    return public_key + sealed


def seal_program(
    content_key: bytes, program: bytes, *, suite: Suite, bundle_id: bytes, manifest_sha256: bytes
) -> bytes:
    """Seal the inside program, bound to its bundle and manifest.

    Returns:
        Ciphertext with tag: 16 bytes more than the program.
    """
    aad = b"cloister-program-1" + bundle_id + manifest_sha256
    return _seal(suite, content_key, _PROGRAM_NONCE_WORD, program, aad)


def seal_slice(
    content_key: bytes,
    data: bytes,
    *,
    suite: Suite,
    bundle_id: bytes,
    program_sha256: bytes,
    index: int,
    n_slices: int,
) -> bytes:
    """Seal one slice, bound to its bundle, program and place.

    Returns:
        Ciphertext with tag: 16 bytes more than the slice.
    """
    aad = b"cloister-slice-1" + bundle_id + program_sha256 + struct.pack("<II", index, n_slices)
    return _seal(suite, content_key, index, data, aad)


def _seal(suite: Suite, content_key: bytes, nonce_word: int, data: bytes, aad: bytes) -> bytes:
    return _CIPHERS[suite](content_key).encrypt(struct.pack("<IQ", nonce_word, 0), data, aad)
