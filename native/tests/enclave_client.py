"""A client of the wire protocol for tests: small, direct, and able to misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM
from cryptography.hazmat.primitives.hpke import Suite as Hpke

NONE, INPUT, OUTPUT, BOTH = range(4)
PAYLOAD, STORE = 1, 2
STREAMED = 0xFFFFFFFF
HPKE = Hpke(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
CIPHERS = {1: AESGCM, 2: ChaCha20Poly1305}
INFO_BYTES, LOAD_BYTES = 160, 136
LOADED_AT = 192  # where the tests have the answer to `load`


def words(*values: int) -> bytes:
    """Pack values, negative ones as two's complement."""
    return struct.pack(f"<{len(values)}I", *(v & 0xFFFFFFFF for v in values))


def floats(*values: float) -> bytes:
    """Pack values as float32."""
    return struct.pack(f"<{len(values)}f", *values)


def up(n: int, step: int = 64) -> int:
    """Round up to a multiple."""
    return -(-n // step) * step


def program(
    arena: int,
    tensors: list,
    slices: list,
    ops: bytes,
    stages: bytes,
    n_stages: int = 1,
    *,
    resident: int = 0,
    slot: int = 0,
    budget: int = 0,
    lanes: int = 1,
) -> bytes:
    """Assemble a program from its sections."""
    body = b"".join(words(*t) for t in tensors) + b"".join(words(*s) for s in slices) + ops + stages
    header = b"CLPR" + words(
        1,
        64 + len(body),
        arena,
        len(tensors),
        len(slices),
        len(ops) // 4,
        n_stages,
        len(stages) // 4,
        resident,
        slot,
        budget,
        lanes,
        0,
        0,
        0,
    )
    return header + body


class Bundle:
    """A sealed program with its slices, for one device."""

    def __init__(self, public_key: bytes, program: bytes, slices: list[bytes], *, suite: int = 1) -> None:
        """Seal everything under a fresh content key."""
        self.bundle_id, self.manifest_hash, key = os.urandom(16), os.urandom(32), os.urandom(32)
        cipher = CIPHERS[suite](key)
        device = X25519PublicKey.from_public_bytes(public_key)
        wrapped = HPKE.encrypt(key, device, info=b"cloister-bundle-1" + self.bundle_id + words(suite))
        self.request = self.bundle_id + self.manifest_hash + wrapped + words(suite, 0)
        self.program = cipher.encrypt(
            words(0xFFFFFFFF) + bytes(8),
            program,
            b"cloister-program-1" + self.bundle_id + self.manifest_hash,
        )
        bound = b"cloister-slice-1" + self.bundle_id + hashlib.sha256(program).digest()
        self.slices = [
            cipher.encrypt(words(i) + bytes(8), data, bound + words(i, len(slices))) for i, data in enumerate(slices)
        ]


class Enclave:
    """A started cloister-enclave and the memory shared with it."""

    def __init__(self, binary, state, *, payload=1 << 20, store=b"", heap=1 << 20, bell=4096, bell_state=0):
        """Start the process."""
        self.payload_fd = os.memfd_create("payload")
        os.ftruncate(self.payload_fd, payload)
        self.store_file = tempfile.TemporaryFile()
        self.store_file.write(store)
        self.store_file.flush()
        self.bell_fd = os.memfd_create("bell")
        os.ftruncate(self.bell_fd, bell)
        os.pwrite(self.bell_fd, words(bell_state), 0)
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        fds = (theirs.fileno(), self.payload_fd, self.store_file.fileno(), self.bell_fd)
        self.process = subprocess.Popen(
            [
                binary,
                "--socket",
                str(fds[0]),
                "--payload",
                str(fds[1]),
                "--store",
                str(fds[2]),
                "--bell",
                str(fds[3]),
                "--state",
                state,
                "--heap",
                str(heap),
            ],
            pass_fds=fds,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        self.sequence = 0

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes into the payload region."""
        os.pwrite(self.payload_fd, data, offset)

    def read(self, offset: int, n: int) -> bytes:
        """Take bytes from the payload region."""
        return os.pread(self.payload_fd, n, offset)

    def exchange(self, frame: bytes) -> bytes | None:
        """Send raw bytes and wait for one response; None if the stream ends."""
        try:
            self.socket.sendall(frame)
            answer = self.socket.recv(48, socket.MSG_WAITALL)
        except (BrokenPipeError, ConnectionResetError):
            return None
        return answer if len(answer) == 48 else None

    def exchange_by_bell(self, frame: bytes) -> bytes | None:
        """Ask by the bell if the process listens there, else by the socket; None if the process ends."""
        awake = os.pread(self.bell_fd, 4, 0) == words(1)
        os.pwrite(self.bell_fd, frame, 64)
        os.pwrite(self.bell_fd, words(2), 0)
        if not awake or not self._heard(1.0):  # it can have fallen asleep since
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.socket.sendall(frame)
        return os.pread(self.bell_fd, 48, 192) if self._heard(60.0) else None

    def _heard(self, seconds: float) -> bool:
        """Wait until the process has answered by the bell; False if it ended or did not."""
        end = time.monotonic() + seconds
        while os.pread(self.bell_fd, 4, 0) == words(2):
            if self.process.poll() is not None or time.monotonic() > end:
                return False
        return True

    def call(self, command: int, *params: tuple[int, int, int, int]) -> tuple[int, tuple[int, ...]]:
        """Invoke a command; return its result and the sizes used."""
        self.sequence += 1
        frame = b"CLRQ" + words(self.sequence, command, 0)
        for i in range(4):
            kind, region, offset, size = params[i] if i < len(params) else (0, 0, 0, 0)
            frame += struct.pack("<IIQQ", kind, region, offset, size)
        answer = self.exchange(frame)
        assert answer is not None, self.end()
        magic, sequence, result, zero = struct.unpack_from("<4s3I", answer)
        assert (magic, sequence, zero) == (b"CLRS", self.sequence, 0)
        return result, struct.unpack_from("<4Q", answer, 16)

    def info(self) -> bytes:
        """Answer of `info`."""
        result, _ = self.call(1, (OUTPUT, PAYLOAD, 0, INFO_BYTES))
        assert result == 0, hex(result)
        return self.read(0, INFO_BYTES)

    def load(self, bundle: Bundle) -> int:
        """Result of `load`."""
        self.write(0, bundle.request)
        self.write(256, bundle.program)
        return self.call(
            2,
            (INPUT, PAYLOAD, 0, LOAD_BYTES),
            (INPUT, PAYLOAD, 256, len(bundle.program)),
            (OUTPUT, PAYLOAD, LOADED_AT, 32),
        )[0]

    def open(self, first: int, slices: list[bytes]) -> int:
        """Result of `open` for the slices from `first` on."""
        sealed = b"".join(slices)
        self.write(0, words(first, len(slices), 0, 0))
        self.write(4096, sealed)
        return self.call(5, (INPUT, PAYLOAD, 0, 16), (INPUT, PAYLOAD, 4096, len(sealed)))[0]

    def stats(self) -> tuple[int, ...]:
        """Answer of `stats`."""
        result, _ = self.call(4, (OUTPUT, PAYLOAD, 0, 64))
        assert result == 0
        return struct.unpack("<8Q", self.read(0, 64))

    def run(
        self,
        stage: int,
        images: bytes,
        n_images: int,
        out_bytes: int,
        *,
        sealed: bytes = b"",
        first: int = 0,
        count: int = 0,
        resume: int = 0,
    ) -> tuple[int, tuple[int, ...], bytes]:
        """Result, the run block's answer words (state, needed, done), and the results."""
        images_at, out_at, sealed_at = 4096, 4096 + up(len(images)), 4096 + up(len(images)) + up(out_bytes)
        self.write(0, words(stage, n_images, first, count, resume) + bytes(44))
        self.write(images_at, images)
        self.write(sealed_at, sealed)
        result, _ = self.call(
            3,
            (BOTH, PAYLOAD, 0, 64),
            (INPUT, PAYLOAD, images_at, len(images)),
            (OUTPUT, PAYLOAD, out_at, out_bytes),
            (INPUT, PAYLOAD, sealed_at, len(sealed)),
        )
        return result, struct.unpack("<3I", self.read(20, 12)), self.read(out_at, out_bytes)

    def end(self) -> tuple[int, str]:
        """Close the stream; return exit code and what was said."""
        self.socket.close()
        _, said = self.process.communicate(timeout=60)
        os.close(self.payload_fd)
        os.close(self.bell_fd)
        self.store_file.close()
        return self.process.returncode, said.decode(errors="replace")


def linear_program(
    *, resident: bool = False, budget: int = 0, factors: tuple[int, int] = (2, -1), lanes: int = 1, slot: int = 64
) -> tuple[bytes, list[bytes]]:
    """Four int8 inputs, four outputs in two slices: y = 2x and y = -x, as int8."""
    first, second = (factor & 255 for factor in factors)
    weights = [bytes([first, 0, 0, 0, 0, first, 0, 0]), bytes([0, 0, second, 0, 0, 0, 0, second])]
    sums = [words(factor, factor, 0, 0) for factor in factors]
    # Units are padded to four.
    slices = [w + bytes(8) + floats(1, 1, 0, 0) + words(0, 0, 0, 0) + s for w, s in zip(weights, sums, strict=True)]
    places = (0, 64) if resident else (STREAMED, STREAMED)
    tensors = [(0, 1, 1, 1, 4, 0), (16, 1, 1, 1, 4, 0)]
    records = [(0, 2, 64, places[0], 0), (2, 2, 64, places[1], 80)]
    ops = words(1, 18, 0, 1, 0, 2, 1, 1, 1, 1, 0, 0, 1, 1, 1, 32, -128, 127)
    stages = words(0, 18, 1, 1, 0, 1)
    return program(
        *(64, tensors, records, ops, stages),
        resident=128 if resident else 0,
        slot=0 if resident else slot,
        budget=budget,
        lanes=lanes,
    ), slices


def state_folder() -> str:
    """A folder for a device key."""
    return str(Path(tempfile.mkdtemp()) / "state")


if __name__ == "__main__":
    enclave = Enclave(sys.argv[1], state_folder())
    info = enclave.info()
    print("flags", struct.unpack_from("<I", info, 8)[0], info[56:120].rstrip(b"\0").decode())
