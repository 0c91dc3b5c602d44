"""An enclave that answers as it is told: what a broken or hostile one could do to its client."""

from __future__ import annotations

import sys
from pathlib import Path

from cloister.enclave import local

_SCRIPT = """#!{python}
import mmap, os, signal, socket, struct, sys, time
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
stream = socket.socket(fileno=int(arguments["--socket"]))
payload_file = int(arguments["--payload"])
payload = mmap.mmap(payload_file, os.fstat(payload_file).st_size)
KEY = bytes.fromhex({key!r})
seen = {{}}

def put(data, at=0):
    payload[at : at + len(data)] = data

def respond(result=0, sizes=(0, 0, 0, 0), sequence=None, magic=b"CLRS", zero=0):
    stream.sendall(struct.pack("<4sIII4Q", magic, seq if sequence is None else sequence, result, zero, *sizes))

def info(protocol=1, kind=1, heap=65536, board=b""):
    put(struct.pack("<IIIIQ32s64s32s8x", protocol, kind, 0, 0, heap, KEY, b"fake", board))
    respond(sizes=(160, 0, 0, 0))

def load(n_stages=1, n_slices=2):
    put(struct.pack("<IIQQ8x", n_stages, n_slices, 8192, 64), 136)
    respond(sizes=(136, 0, 32, 0))

def run(state=0, needed=0, done=0):
    put(struct.pack("<3I", state, needed, done), 20)
    respond(sizes=(64, 0, 0, 0))

def stats():
    put(struct.pack("<8Q", *range(8)))
    respond(sizes=(64, 0, 0, 0))

def opened():
    respond(sizes=(16, 0, 0, 0))

answers = {{1: info, 2: load, 3: run, 4: stats, 5: opened}}
{behaviour}
while True:
    frame = b""
    while len(frame) < 112:
        piece = stream.recv(112 - len(frame))
        if not piece:
            sys.exit(0)
        frame += piece
    seq, command = struct.unpack_from("<II", frame, 4)
    seen[command] = seen.get(command, 0) + 1
    answers[command]()
"""


def install(monkeypatch, folder: Path, behaviour: str = "", *, key: bytes = bytes(32)) -> None:
    """Make the client start this enclave.

    Args:
        monkeypatch: pytest's.
        folder: where to write it.
        behaviour: Python statements that change `answers`, from command number to function.
        key: its public key.
    """
    path = folder / "fake-enclave"
    path.write_text(_SCRIPT.format(python=sys.executable, key=key.hex(), behaviour=behaviour))
    path.chmod(0o755)
    monkeypatch.setattr(local, "binary_path", lambda: path)
