"""Write vectors/hpke.json, rfc8439.json and sealed.json, and the same numbers as C headers.

Sealing draws random numbers, so a second run gives other vectors that are as good; those of the RFC stay.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import cryptography
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from enclave_client import HPKE, Bundle, linear_program

PROVENANCE = f"native/tests/make_vectors.py with cryptography {cryptography.__version__}"


def c_array(name: str, data: bytes) -> str:
    """A C array; an empty one gets one byte that does not count."""
    numbers = ", ".join(str(b) for b in data or b"\0")
    return f"static const uint8_t {name}[] = {{{numbers}}};\n#define {name}_bytes {len(data)}u\n"


def write(folder: Path, name: str, document: dict) -> None:
    """Write one document in both forms."""
    text = json.dumps(document, indent=1) + "\n"
    (folder / f"{name}.json").write_text(text)
    lines = [
        "/* SPDX-License-Identifier: Apache-2.0\n *\n",
        f" * {name}.json for C. {document['made_by']}.\n */\n",
        "#include <stdint.h>\n",
    ]
    for key, value in document.items():
        if key != "made_by":
            lines.append(c_array(f"{name}_{key}", bytes.fromhex(value)))
    (folder / f"{name}.h").write_text("".join(lines))


def hpke(device: X25519PrivateKey) -> dict:
    """One message sealed to a device."""
    plaintext, info = os.urandom(32), b"cloister-bundle-1" + os.urandom(16)
    sealed = HPKE.encrypt(plaintext, device.public_key(), info=info)
    return {
        "made_by": PROVENANCE,
        "private_key": device.private_bytes_raw().hex(),
        "public_key": device.public_key().public_bytes_raw().hex(),
        "info": info.hex(),
        "enc": sealed[:32].hex(),
        "ciphertext": sealed[32:].hex(),
        "plaintext": plaintext.hex(),
    }


def rfc8439() -> dict:
    """The published example of ChaCha20-Poly1305."""
    text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    text += b"sunscreen would be it."
    return {
        "made_by": "RFC 8439, section 2.8.2",
        "key": bytes(range(0x80, 0xA0)).hex(),
        "nonce": "070000004041424344454647",
        "aad": "50515253c0c1c2c3c4c5c6c7",
        "ciphertext": "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
        "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
        "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b6116",
        "tag": "1ae10b594f09e26a7e902ecbd0600691",
        "plaintext": text.hex(),
    }


def sealed(device: X25519PrivateKey, prefix: str, *, suite: int, resident: bool, budget: int) -> dict:
    """What a client sends to load a small program, and its slices."""
    program, slices = linear_program(resident=resident, budget=budget)
    bundle = Bundle(device.public_key().public_bytes_raw(), program, slices, suite=suite)
    return {
        f"{prefix}request": bundle.request.hex(),
        f"{prefix}program": bundle.program.hex(),
        f"{prefix}slice_0": bundle.slices[0].hex(),
        f"{prefix}slice_1": bundle.slices[1].hex(),
    }


def main() -> None:
    """Write all vectors into the folder given."""
    folder = Path(sys.argv[1])
    device = X25519PrivateKey.generate()
    write(folder, "hpke", hpke(device))
    write(folder, "rfc8439", rfc8439())
    document = {
        "made_by": PROVENANCE,
        "private_key": device.private_bytes_raw().hex(),
        "public_key": device.public_key().public_bytes_raw().hex(),
    }
    for suite, name in ((1, ""), (2, "chacha_")):
        document |= sealed(device, name, suite=suite, resident=False, budget=0)
        document |= sealed(device, f"{name}resident_", suite=suite, resident=True, budget=1 << 16)
        document |= sealed(device, f"{name}tight_", suite=suite, resident=True, budget=4096)
    write(folder, "sealed", document)


if __name__ == "__main__":
    main()
