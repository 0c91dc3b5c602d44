"""Write vectors/hpke.json and vectors/sealed.json, and the same numbers as C headers.

Sealing draws random numbers, so a second run gives other vectors that are as good.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import cryptography
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from enclave_client import SUITE, Bundle, linear_program

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
        f" * {name}.json for C. {PROVENANCE}.\n */\n",
        "#include <stdint.h>\n",
    ]
    for key, value in document.items():
        if key != "made_by":
            lines.append(c_array(f"{name}_{key}", bytes.fromhex(value)))
    (folder / f"{name}.h").write_text("".join(lines))


def hpke(device: X25519PrivateKey) -> dict:
    """One message sealed to a device."""
    plaintext, info = os.urandom(32), b"cloister-bundle-1" + os.urandom(16)
    sealed = SUITE.encrypt(plaintext, device.public_key(), info=info)
    return {
        "made_by": PROVENANCE,
        "private_key": device.private_bytes_raw().hex(),
        "public_key": device.public_key().public_bytes_raw().hex(),
        "info": info.hex(),
        "enc": sealed[:32].hex(),
        "ciphertext": sealed[32:].hex(),
        "plaintext": plaintext.hex(),
    }


def sealed(device: X25519PrivateKey, prefix: str, *, resident: bool, budget: int) -> dict:
    """What a client sends to load a small program, and its slices."""
    program, slices = linear_program(resident=resident, budget=budget)
    bundle = Bundle(device.public_key().public_bytes_raw(), program, slices)
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
    document = {
        "made_by": PROVENANCE,
        "private_key": device.private_bytes_raw().hex(),
        "public_key": device.public_key().public_bytes_raw().hex(),
    }
    document |= sealed(device, "", resident=False, budget=0)
    document |= sealed(device, "resident_", resident=True, budget=1 << 16)
    document |= sealed(device, "tight_", resident=True, budget=4096)
    write(folder, "sealed", document)


if __name__ == "__main__":
    main()
