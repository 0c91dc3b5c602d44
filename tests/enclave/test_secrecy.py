"""No inside weight is ever in the clear outside: not in the file, the client's memory, or what it shares.

The client is another process than the one that searches, which knows the weights.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cloister.bundle.keys import recipients
from tests.bundle.sample import images, make_sample, packed_weights

#: A shorter run could be chance or a constant.
RUN_BYTES = 24

CLIENT = """
import sys, numpy, cloister
bundle, images, plant, where = sys.argv[1:]
x = numpy.load(images)
planted = bytearray(open(plant, "rb").read()) if where == "heap" else None
with cloister.load(bundle) as session:
    session.run(x)
    if where == "payload":
        secret = open(plant, "rb").read()
        session._inside.enclave.payload[301 : 301 + len(secret)] = secret
        del secret
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def sample():
    return make_sample(budget_bytes=9000)


@pytest.fixture(scope="module")
def bundle(sample, tmp_path_factory):
    return sample.write(tmp_path_factory.mktemp("secrecy") / "m.cloister", recipients(["local"]))


def longest_run(memory: bytes, secret: bytes) -> int:
    """The longest run of the secret's bytes, of at least `RUN_BYTES`, that memory holds anywhere; else 0.

    Such a run, however it lies, covers an aligned word of memory, so only these are looked up.
    """
    words = np.frombuffer(memory, np.uint64, len(memory) // 8)
    wanted = np.unique(np.lib.stride_tricks.sliding_window_view(np.frombuffer(secret, np.uint8), 8).copy().view("u8"))
    places = wanted.searchsorted(words)
    hits = np.flatnonzero(wanted[np.minimum(places, len(wanted) - 1)] == words)
    return max((run_at(memory, 8 * int(hit), secret) for hit in hits), default=0)


def run_at(memory: bytes, at: int, secret: bytes) -> int:
    best = 0
    place = secret.find(memory[at : at + 8])
    while place >= 0:
        start, first = at, place
        while start > 0 and first > 0 and memory[start - 1] == secret[first - 1]:
            start, first = start - 1, first - 1
        end, last = at + 8, place + 8
        while end < len(memory) and last < len(secret) and memory[end] == secret[last]:
            end, last = end + 1, last + 1
        best = max(best, end - start)
        place = secret.find(memory[at : at + 8], place + 1)
    return best if best >= RUN_BYTES else 0


def search_process(process_id: int, secret: bytes) -> dict[str, int]:
    """The longest run in each mapping that has one, by the mapping's line; every readable mapping is searched."""
    found = {}
    with open(f"/proc/{process_id}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{process_id}/maps").read_text().splitlines():
            start, end, mode = re.match(r"(\w+)-(\w+) (\S+)", line).groups()
            if "r" not in mode or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            memory.seek(int(start, 16))
            content = memory.read(int(end, 16) - int(start, 16))
            if run := longest_run(content, secret):
                found[line] = run
    return found


def run_client(bundle, tmp_path, secrets, plant=b"", where="nowhere"):
    """What a client that has loaded and run the bundle holds of each secret, and its mappings."""
    np.save(tmp_path / "x.npy", images(4))
    (tmp_path / "plant").write_bytes(plant)
    command = [sys.executable, "-c", CLIENT, str(bundle), str(tmp_path / "x.npy"), str(tmp_path / "plant"), where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout.readline() == b"ready\n"
        found = [search_process(client.pid, secret) for secret in secrets]
        maps = Path(f"/proc/{client.pid}/maps").read_text()
    assert client.returncode == 0
    return found, maps


def test_client_holds_no_inside_weight_but_the_outside_ones(sample, bundle, tmp_path):
    stem = packed_weights(sample.graph.ops[1])
    found, maps = run_client(bundle, tmp_path, [*sample.inside_weights, stem])
    *inside, outside = found
    assert inside == [{}] * len(inside)
    assert max(outside.values()) == len(stem)  # the search works, in the same process
    assert "cloister-payload" in maps
    assert str(bundle) in maps


@pytest.mark.parametrize("where", ["heap", "payload"])
def test_planted_weights_are_found(where, sample, bundle, tmp_path):
    hidden = sample.inside_weights[0]
    found, _ = run_client(bundle, tmp_path, [hidden], plant=b"#" + hidden[101 : 101 + RUN_BYTES], where=where)
    assert max(found[0].values()) == RUN_BYTES
    if where == "payload":
        assert any("cloister-payload" in line for line in found[0])


def test_file_holds_no_inside_weight(sample, bundle):
    data = bundle.read_bytes()
    stem = packed_weights(sample.graph.ops[1])
    for weights in sample.inside_weights:
        assert longest_run(data, weights) == 0
        for shift in range(8):  # a needle that the search must find wherever it lies
            planted = data[: 1000 + shift] + weights[7 : 7 + RUN_BYTES] + data[1000:]
            assert longest_run(planted, weights) == RUN_BYTES
    assert longest_run(data, stem) > 0
