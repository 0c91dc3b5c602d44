"""cloister-host with the trusted application in its own process: streams, good and bad.

`python test_host.py BINARY [SEED [ROUNDS]]`; a binary built with sanitizers must never report anything.
"""

from __future__ import annotations

import contextlib
import os
import pty
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
import tty
from pathlib import Path

from enclave_client import BOTH, INFO_BYTES, INPUT, OUTPUT, PAYLOAD, STORE, Bundle, linear_program, state_folder, words

IMAGES, EXPECTED = bytes(range(1, 9)), struct.pack("8b", 2, 4, -3, -4, 10, 12, -7, -8)
STORE_BYTES, OUTSIDE_LOAD, OUTSIDE_RUN = 0x80000001, 0x80000002, 0x80000003
CLOCK, SETTLE = 0x80000004, 0x80000005
BAD_PARAMETERS, EXCESS_DATA, BAD_STATE, BAD_FORMAT = 0xFFFF0006, 0xFFFF0004, 0xFFFF0007, 0xFFFF0005
SHARED = 65536


def environment(**more: str) -> dict[str, str]:
    """For a process with a device key of its own."""
    return {**os.environ, "TEEC_STATE": state_folder(), **more}


class Client:
    """A client of a byte stream: small, direct, and able to misbehave."""

    def __init__(self, read: int, write: int) -> None:
        """In: the two ends."""
        self.ends = (read, write)
        self.sequence = 0

    def send(self, data: bytes) -> None:
        """All of it, as it is."""
        while data:
            data = data[os.write(self.ends[1], data) :]

    def receive(self, n: int) -> bytes:
        """Exactly n bytes, or fewer at the end."""
        got = b""
        while len(got) < n and (piece := self._read(n - len(got))):
            got += piece
        return got

    def _read(self, n: int) -> bytes:
        with contextlib.suppress(OSError):
            return os.read(self.ends[0], n)
        return b""

    def hello(self, version: int = 1, before: bytes = b"") -> tuple[int, int, int]:
        """(result, origin, shared bytes)."""
        nonce = os.urandom(16)
        self.send(before + b"CLHI" + words(version) + nonce + bytes(8))
        answer = self.receive(48)
        assert answer[:24] == b"CLHO" + words(1) + nonce, answer
        assert answer[40:] == bytes(8)
        return struct.unpack_from("<IIQ", answer, 24)

    def chunks(self, data: bytes, size: int = 65536) -> None:
        """Send data in chunks."""
        for i in range(0, len(data), size):
            self.send(b"CLCK" + words(len(data[i : i + size])) + data[i : i + size])

    def frame(self, command: int, *params: tuple) -> bytes:
        """The frame of a request. params: (kind, region, offset, size)."""
        self.sequence += 1
        filled = [*params, *[(0, 0, 0, 0)] * 4][:4]
        return b"CLRQ" + words(self.sequence, command, 0) + b"".join(struct.pack("<IIQQ", *p) for p in filled)

    def answer(self, *outputs: int) -> tuple[int, list[bytes]]:
        """Receive a response, and what follows it. outputs: which parameters are."""
        head = self.receive(48)
        magic, sequence, result, zero, *used = struct.unpack("<4s3I4Q", head)
        assert (magic, sequence, zero) == (b"CLRS", self.sequence, 0), head
        return result, [self.receive(used[i]) for i in outputs if result == 0]

    def call(self, command: int, *params: tuple, chunk: int = 65536) -> tuple[int, list[bytes]]:
        """params: (INPUT or BOTH, bytes), (OUTPUT, size), (STORE, offset, size) or ()."""
        frame, body, outputs = [], b"", []
        for i, (kind, *rest) in enumerate(p or (0,) for p in params):
            if isinstance(rest and rest[0], bytes):
                frame.append((kind, PAYLOAD, 77, len(rest[0])))
                body += rest[0]
            elif len(rest) == 2:
                frame.append((INPUT, STORE, *rest))
            else:
                frame.append((kind, PAYLOAD, 0, rest[0]) if rest else (0, 0, 0, 0))
            if kind in (OUTPUT, BOTH) and len(rest) == 1:
                outputs.append(i)
        self.chunks(self.frame(command, *frame) + body, chunk)
        return self.answer(*outputs)

    def store(self, offset: int, data: bytes) -> int:
        """Result of storing."""
        self.chunks(self.frame(STORE_BYTES, (INPUT, STORE, offset, len(data))) + data)
        return self.answer()[0]

    def info(self) -> bytes:
        """Answer of `info`."""
        result, (info,) = self.call(1, (OUTPUT, INFO_BYTES))
        assert result == 0
        return info

    def load(self, bundle: Bundle) -> int:
        """Result of `load`, with the program from the payload."""
        return self.call(2, (INPUT, bundle.request), (INPUT, bundle.program), (OUTPUT, 32))[0]

    def run(self, *window: object, count: int = 2) -> tuple[int, bytes]:
        """Result, and results of the two images."""
        block = words(0, 2, 0, count, 0) + bytes(44)
        result, outputs = self.call(3, (BOTH, block), (INPUT, IMAGES), (OUTPUT, 8), window)
        return result, outputs[1] if outputs else b""


class Host(Client):
    """A process that serves its standard input and output."""

    def __init__(self, binary: str, *options: str, **more: str) -> None:
        """Start it."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [binary, "--stdio", "--shared", str(SHARED), *options],
                stdin=theirs,
                stdout=theirs,
                stderr=subprocess.PIPE,
                env=environment(**more),
            )
        self.socket = ours
        super().__init__(ours.fileno(), ours.fileno())

    def end(self) -> None:
        """Go away; the process must end in order and say nothing."""
        self.socket.close()
        _, said = self.process.communicate(timeout=60)
        assert (self.process.returncode, said) == (0, b""), (self.process.returncode, said.decode(errors="replace"))


def opened(binary: str, *, suite: int = 1, resident: bool = False) -> tuple[Host, Bundle]:
    """A host with a session, and a bundle for it."""
    host = Host(binary)
    assert host.hello() == (0, 4, SHARED)
    return host, Bundle(host.info()[24:56], *linear_program(resident=resident), suite=suite)


def check_settled(host: Host) -> None:
    """Requests wait for the next multiple of 20 ms, but not within what the clock tells; only until the next hello."""
    assert host.call(SETTLE)[0] == 0
    starts = []
    for _ in range(5):
        began = time.monotonic()
        host.info()
        assert struct.unpack("<QQ", host.call(CLOCK, (OUTPUT, 16))[1][0])[0] > 0
        starts.append(began)
    assert starts[-1] - starts[0] > 0.06, starts
    assert host.hello()[0] == 0


# --- Good runs -------------------------------------------------------------------------------------------------------


def check_whole_path(binary: str) -> None:
    """Load and run, from the payload and from the store, whatever the chunks."""
    for suite in (1, 2):
        host, bundle = opened(binary, suite=suite)
        sealed = b"".join(bundle.slices)
        assert host.load(bundle) == 0
        assert host.run(INPUT, sealed) == (0, EXPECTED)
        n, whole = len(bundle.program), bundle.program + sealed
        assert [host.store(i, whole[i : i + 100]) for i in range(0, len(whole), 100)] == [0] * -(-len(whole) // 100)
        loaded = host.call(2, (INPUT, bundle.request), (STORE, 0, n), (OUTPUT, 32), chunk=1)
        assert loaded[0] == 0
        assert host.run(STORE, n, len(sealed)) == (0, EXPECTED)
        assert struct.unpack("<8Q", host.call(4, (OUTPUT, 64))[1][0])[2] == 2
        ticks, rate = struct.unpack("<QQ", host.call(CLOCK, (OUTPUT, 16))[1][0])
        assert 0 < ticks < rate, (ticks, rate)
        assert host.call(CLOCK, (OUTPUT, 15))[0] == 0xFFFF0010
        assert host.call(CLOCK)[0] == BAD_PARAMETERS
        assert host.call(SETTLE, (OUTPUT, 16))[0] == BAD_PARAMETERS
        check_settled(host)
        assert host.call(99)[0] == host.call(0x80000006)[0] == 0xFFFF0009
        host.end()


def outside_program() -> tuple[bytes, bytes]:
    """The linear program for the outside, and its constants."""
    program, slices = linear_program()
    # slot_bytes is 0, and a slice starts at a multiple of 64
    program = program[:40] + words(0) + program[44:]
    at = program.index(words(2, 2, 64, 0xFFFFFFFF, 80)) + 16
    return program[:at] + words(64) + program[at + 4 :], slices[0] + slices[1]


def check_outside(binary: str) -> None:
    """The same results in the host's own process; what is wrong is refused, and forgotten."""
    host, _ = opened(binary)
    program, constants = outside_program()
    run = (OUTSIDE_RUN, (INPUT, words(0, 2)), (INPUT, IMAGES), (OUTPUT, 8))
    assert host.call(*run)[0] == BAD_STATE
    for chunk in (7, 65536):
        assert host.call(OUTSIDE_LOAD, (INPUT, program), (INPUT, constants), chunk=chunk)[0] == 0
        assert host.call(*run) == (0, [EXPECTED])
    assert host.store(0, program + constants) == 0
    n = len(program)
    assert host.call(OUTSIDE_LOAD, (STORE, 0, n), (STORE, n, len(constants)))[0] == 0
    assert host.store(0, bytes(n + len(constants))) == 0  # it has a copy
    assert host.call(*run) == (0, [EXPECTED])
    assert host.call(OUTSIDE_RUN, (INPUT, words(1, 2)), (INPUT, IMAGES), (OUTPUT, 8))[0] == BAD_PARAMETERS
    assert host.call(OUTSIDE_RUN, (INPUT, words(0, 3)), (INPUT, IMAGES), (OUTPUT, 8))[0] == BAD_PARAMETERS
    assert host.call(OUTSIDE_RUN, (INPUT, words(0)), (INPUT, IMAGES), (OUTPUT, 8))[0] == BAD_PARAMETERS
    assert host.call(OUTSIDE_RUN, (INPUT, words(0, 2)), (INPUT, IMAGES))[0] == BAD_PARAMETERS
    assert host.call(*run) == (0, [EXPECTED])
    assert host.call(OUTSIDE_LOAD, (INPUT, program), (INPUT, constants[:-1]))[0] == BAD_PARAMETERS
    assert host.call(*run)[0] == BAD_STATE
    assert host.call(OUTSIDE_LOAD, (INPUT, program[:-1]), (INPUT, constants))[0] == BAD_FORMAT
    assert host.call(OUTSIDE_LOAD, (INPUT, b""), (INPUT, b""))[0] == BAD_FORMAT
    huge = program[:12] + words(0xFFFFFFC0) + program[16:]  # the arena
    assert host.call(OUTSIDE_LOAD, (INPUT, huge), (INPUT, constants))[0] == 0xFFFF000C
    assert host.call(OUTSIDE_LOAD, (INPUT, program))[0] == BAD_PARAMETERS
    assert host.hello()[0] == 0
    assert host.call(*run)[0] == BAD_STATE
    host.end()


# --- Streams ---------------------------------------------------------------------------------------------------------


def check_resync(binary: str) -> None:
    """A hello gets through whatever an earlier client left unfinished, and finds nothing of it."""
    host, bundle = opened(binary, resident=True)
    sealed = b"".join(bundle.slices)
    filler = bytes(65544)
    request = host.frame(2, (INPUT, PAYLOAD, 0, 136), (INPUT, PAYLOAD, 0, 1 << 40), (OUTPUT, PAYLOAD, 0, 32))
    broken = [
        b"",
        b"CL",
        b"CLHI",
        b"CLHI" + words(1) + bytes(10),
        b"CLCK",
        b"CLCK" + words(65536) + request,
        b"CLCK" + words(112) + request,
        b"CLCK" + words(50) + request[:50],
        b"CLCK" + words(0),
        b"CLCK" + words(65537),
        b"CLCK" + words(112) + b"CLRX" + request[4:],
        b"CLCK" + words(112) + request[:12] + words(1) + request[16:],
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(1000),
    ]
    for garbage in broken:
        host.send(garbage + filler)
        late = b"CLHI" + words(1) + b"another client's" + bytes(8)
        host.send(late)
        seen = b""
        while b"another client's" not in seen:
            seen += host.receive(1)
        host.receive(24)
        assert host.hello() == (0, 4, SHARED), garbage
        assert host.run(INPUT, sealed)[0] == BAD_STATE  # a new session
        assert host.call(OUTSIDE_LOAD, (STORE, 0, 1), (INPUT, b""))[0] == BAD_PARAMETERS  # nothing is stored
        assert host.load(bundle) == 0
        assert host.run(INPUT, sealed) == (0, EXPECTED)
        assert host.store(0, b"x") == 0
    host.end()


def check_requests_before_hello(binary: str) -> None:
    """They are skipped."""
    host = Host(binary)
    host.chunks(host.frame(1, (OUTPUT, PAYLOAD, 0, INFO_BYTES)))
    assert host.hello() == (0, 4, SHARED)
    assert host.hello(version=2)[:2] == (0xFFFF000A, 1)
    assert host.call(1, (OUTPUT, INFO_BYTES))[0] == 0xFFFF000A
    assert host.hello(before=b"x" * 31)[0] == 0
    host.info()
    host.end()


def check_bad_parameters(binary: str) -> None:
    """Refused with their bytes skipped: the next request is understood."""
    host, _ = opened(binary)
    assert host.store(0, b"0123456789") == 0
    for param in [
        (OUTPUT, STORE, 0, 0),
        (BOTH, STORE, 0, 1),
        (INPUT, STORE, 0, 11),
        (INPUT, STORE, 10, 1),
        (INPUT, STORE, (1 << 64) - 1, 2),
        (INPUT, 0, 0, 0),
        (INPUT, 3, 0, 5),
        (OUTPUT, 3, 0, 5),
        (4, PAYLOAD, 0, 9),
        (0, PAYLOAD, 0, 9),
        (0, 0, 1, 0),
        (0, 0, 0, 1),
    ]:
        host.chunks(host.frame(1, param))
        assert host.answer()[0] == BAD_PARAMETERS, param
        host.chunks(host.frame(1, (INPUT, PAYLOAD, 0, 3), param) + b"abc")
        assert host.answer()[0] == BAD_PARAMETERS, param
    for sizes in [(SHARED + 1,), (SHARED, 1), (1,) * 3 + (SHARED - 12287,), ((1 << 64) - 1,), (1 << 63, 1 << 63)]:
        host.chunks(host.frame(1, *((OUTPUT, PAYLOAD, 0, n) for n in sizes)))
        assert host.answer()[0] == EXCESS_DATA, sizes
    assert host.call(1, (INPUT, bytes(SHARED + 1)))[0] == EXCESS_DATA
    assert host.call(OUTSIDE_LOAD, (INPUT, bytes(SHARED)), (INPUT, b"1"))[0] == EXCESS_DATA
    host.chunks(host.frame(1, *((OUTPUT, PAYLOAD, 0, n) for n in (4096,) * 3 + (SHARED - 12288,))))
    assert host.answer()[0] == BAD_PARAMETERS  # it fits; the trusted application does not want it
    assert host.store(11, b"x") == BAD_PARAMETERS
    assert host.store(5, b"5") == 0
    host.chunks(host.frame(STORE_BYTES, (INPUT, PAYLOAD, 0, 5)))
    assert host.answer()[0] == BAD_PARAMETERS
    for more, body in [((INPUT, STORE, 0, 2), b"bc"), ((OUTPUT, PAYLOAD, 0, 2), b"")]:
        host.chunks(host.frame(STORE_BYTES, (INPUT, STORE, 0, 1), more) + b"a" + body)
        assert host.answer()[0] == BAD_PARAMETERS
    host.info()
    host.end()


def check_too_much_to_store(binary: str) -> None:
    """More than the machine can hold is refused at once; the bytes may still come, and a hello ends it."""
    host, _ = opened(binary)
    for size in (1 << 40, (1 << 64) - 1):
        host.chunks(host.frame(STORE_BYTES, (INPUT, STORE, 0, size)) + bytes(100))
        assert host.hello()[0] == 0
    host.info()
    host.end()


def check_results_are_bounded(binary: str) -> None:
    """A TEE that says it wrote more than there was room for is not believed."""
    host = Host(binary, TEEC_LIES="1")
    assert host.hello()[0] == 0
    assert host.call(1, (OUTPUT, INFO_BYTES))[0] == 0xFFFF0000
    host.end()


def check_failures_to_open(binary: str) -> None:
    """Each is told in the answer to the hello, and again to whoever goes on."""
    cases = [
        ({"TEEC_FAIL_CONTEXT": "1"}, 0xFFFF000E, 1),
        ({"TEEC_MOST_SHARED": "4095"}, 0xFFFF000C, 1),
        ({"TEEC_FAIL_SESSION": "ffff0008"}, 0xFFFF0008, 3),
        ({"TEEC_FAIL_SESSION": "ffff000f"}, 0xFFFF000F, 3),
    ]
    for more, result, origin in cases:
        host = Host(binary, **more)
        for _ in range(2):
            assert host.hello() == (result, origin, SHARED), more
            assert host.call(1, (OUTPUT, INFO_BYTES))[0] == result
            assert host.call(1, (INPUT, bytes(SHARED + 1)))[0] == result
            assert host.store(0, b"x") == result
            assert host.call(CLOCK, (OUTPUT, 16))[0] == result
        host.end()


def check_less_shared_memory(binary: str) -> None:
    """Where the driver has less, half of it or less is what parameters may have."""
    host = Host(binary, TEEC_MOST_SHARED=str(SHARED // 2 - 1))
    smaller = SHARED // 4
    assert host.hello()[::2] == (0, smaller)
    assert len(host.info()) == INFO_BYTES
    assert host.call(1, (INPUT, bytes(smaller + 1)))[0] == 0xFFFF0004
    assert host.hello()[::2] == (0, smaller)
    host.end()


def wild_request(rng: random.Random, host: Host, bundle: Bundle) -> bytes:
    """A request that is right in most places, with the bytes that it says, or nothing like one."""
    shapes = {
        1: [(OUTPUT, PAYLOAD, 0, INFO_BYTES)],
        2: [(INPUT, PAYLOAD, 0, 136), (INPUT, STORE, 0, len(bundle.program)), (OUTPUT, PAYLOAD, 0, 32)],
        3: [(BOTH, PAYLOAD, 0, 64), (INPUT, PAYLOAD, 0, 8), (OUTPUT, PAYLOAD, 0, 8), (INPUT, PAYLOAD, 0, 80)],
        4: [(OUTPUT, PAYLOAD, 0, 64)],
        STORE_BYTES: [(INPUT, STORE, 0, 300)],
        OUTSIDE_LOAD: [(INPUT, PAYLOAD, 0, 300), (INPUT, PAYLOAD, 0, 64)],
        OUTSIDE_RUN: [(INPUT, PAYLOAD, 0, 8), (INPUT, PAYLOAD, 0, 8), (OUTPUT, PAYLOAD, 0, 8)],
        CLOCK: [(OUTPUT, PAYLOAD, 0, 16)],
    }
    command = rng.choice([*shapes, 2, 3, 3, 3, OUTSIDE_LOAD, OUTSIDE_RUN, rng.getrandbits(32)])
    params = [list(p) for p in [*shapes.get(command, []), *[(0, 0, 0, 0)] * 4][:4]]
    for _ in range(rng.choice([0, 0, 1, 2])):
        params[rng.randrange(4)][rng.randrange(4)] = rng.choice([0, 1, 2, 3, 4, 64, 300, 4096, 70000])
    bodies = {
        2: bundle.request,
        3: words(0, 2, 0, 2, 0) + bytes(44) + IMAGES + b"".join(bundle.slices),
        STORE_BYTES: bundle.program,
        OUTSIDE_LOAD: b"".join(outside_program()),
        OUTSIDE_RUN: words(0, 2) + IMAGES,
    }
    body = bytearray(bodies.get(command, b"") + rng.randbytes(64))
    for _ in range(rng.choice([0, 0, 1, 3])):
        body[rng.randrange(len(body))] = rng.getrandbits(8)
    region = STORE if command == STORE_BYTES else PAYLOAD
    n = sum(p[3] for p in params if p[0] in (INPUT, BOTH) and p[1] == region)
    return host.frame(command, *params) + bytes(body[:n]).ljust(n, b"\xa5")


def check_wild_requests(binary: str, seed: int, rounds: int) -> None:
    """Each is answered, or skipped up to the next hello; the process never crashes."""
    rng = random.Random(seed)
    answers: dict[int, int] = {}
    host, bundle = opened(binary)
    for _ in range(rounds):
        request = bytearray(wild_request(rng, host, bundle))
        if rng.random() < 0.1:  # a stream that is no longer one
            request[rng.randrange(len(request))] = rng.getrandbits(8)
            host.chunks(bytes(request), rng.choice([1, 100, 65536]))
            host.send(bytes(65544) + b"CLHI" + words(1) + b"my own, at last." + bytes(8))
            seen = b""
            while b"my own, at last." not in seen:
                piece = host.receive(1)
                assert piece, host.process.communicate()
                seen += piece
            host.receive(24)
            continue
        host.chunks(bytes(request), rng.choice([1, 100, 65536, 65536]))
        head = host.receive(48)
        assert len(head) == 48, host.process.communicate()
        _, _, result, _, *used = struct.unpack("<4s3I4Q", head)
        kinds = [struct.unpack_from("<I", request, 16 + 24 * i)[0] for i in range(4)]
        if result == 0:
            host.receive(sum(n for n, kind in zip(used, kinds, strict=True) if kind in (OUTPUT, BOTH)))
        answers[result] = answers.get(result, 0) + 1
    host.end()
    print("seed", seed, "answers", {hex(k): n for k, n in sorted(answers.items())})


# --- Other ways in ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(binary: str, *options: str) -> subprocess.Popen:
    """A process that serves others than its parent; it says nothing before it is ended."""
    process = subprocess.Popen([binary, *options], stderr=subprocess.PIPE, env=environment(ASAN_OPTIONS="exitcode=99"))
    try:
        yield process
    finally:
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert said == b"", said.decode(errors="replace")


def connected(family: int, address: object) -> tuple[socket.socket, Client]:
    """A client, as soon as somebody listens."""
    end = time.monotonic() + 30
    while True:
        stream = socket.socket(family)
        try:
            stream.connect(address)
        except OSError:
            stream.close()
            assert time.monotonic() < end
            time.sleep(0.02)
        else:
            return stream, Client(stream.fileno(), stream.fileno())


def check_two_clients(binary: str) -> None:
    """Both are served, never mixed; one that goes away does not disturb the other."""
    path = str(Path(tempfile.mkdtemp()) / "socket")
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    for options, family, address in [
        (("--unix", path), socket.AF_UNIX, path),
        (("--tcp", str(port)), socket.AF_INET, ("127.0.0.1", port)),
    ]:
        with running(binary, *options):
            pairs = [connected(family, address) for _ in range(2)]
            clients = [client for _, client in pairs]
            for client in clients:
                assert client.hello()[0] == 0
            factors = [(2, -1), (3, 5)]
            bundles = [
                Bundle(c.info()[24:56], *linear_program(factors=f)) for c, f in zip(clients, factors, strict=True)
            ]
            wanted = [struct.pack("8b", *(x * f[i // 2 % 2] for i, x in enumerate(IMAGES))) for f in factors]
            assert [c.load(b) for c, b in zip(clients, bundles, strict=True)] == [0, 0]
            for _ in range(3):
                got = [c.run(INPUT, b"".join(b.slices)) for c, b in zip(clients, bundles, strict=True)]
                assert got == [(0, wanted[0]), (0, wanted[1])]
            clients[0].send(b"CLCK" + words(1000) + b"CLRQ")
            pairs[0][0].close()
            assert clients[1].run(INPUT, b"".join(bundles[1].slices)) == (0, wanted[1])
            many = [connected(family, address) for _ in range(12)]
            for _, client in many:
                assert client.hello()[0] == 0
            for stream, _ in [pairs[1], *many]:
                stream.close()
            stream, client = connected(family, address)
            assert client.hello()[0] == 0
            stream.close()


def check_lines(binary: str) -> None:
    """A serial line and a port: a pseudo-terminal stands for both."""
    for option in ("--tty", "--port"):
        ours, theirs = pty.openpty()
        tty.setraw(theirs)  # or the first bytes come back, before the host has set it
        with running(binary, option, os.ttyname(theirs)) as process:
            client = Client(ours, ours)
            assert client.hello()[0] == 0
            bundle = Bundle(client.info()[24:56], *linear_program())
            assert client.load(bundle) == 0
            assert client.run(INPUT, b"".join(bundle.slices)) == (0, EXPECTED)
            os.close(theirs)
            os.close(ours)
            if option == "--tty":
                assert process.wait(timeout=30) == 0
                continue
            time.sleep(1)  # nobody is there any more: it waits, and does not spin
            before = processor_ticks(process.pid)
            time.sleep(1)
            assert processor_ticks(process.pid) - before < 20


def processor_ticks(process_id: int) -> int:
    """User and system time of a process, in hundredths of a second."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def check_refused_starts(binary: str) -> None:
    """What is wrong with the options or with the way is named."""

    def start(*options: str) -> tuple[int, str]:
        done = subprocess.run(
            [binary, *options], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env=environment()
        )
        return done.returncode, done.stderr

    for options, named in [
        ((), "--stdio"),
        (("--stdio", "--tcp", "7000"), "one of"),
        (("--color",), "--color"),
        (("--unix",), "needs a value"),
        (("--tcp", "0"), "--tcp"),
        (("--tcp", "70000"), "--tcp"),
        (("--stdio", "--shared", "4095"), "--shared"),
        (("--stdio", "--shared", "1e6"), "--shared"),
        (("--port", "x") * 17, "at most"),
    ]:
        code, said = start(*options)
        assert code == 2 and named in said, (options, code, said)
    for options, named in [
        (("--unix", "/nonexistent/socket"), "/nonexistent/socket"),
        (("--unix", "/" + "x" * 200), "too long"),
        (("--port", "/nonexistent/port"), "/nonexistent/port"),
        (("--tty", "/nonexistent/tty"), "/nonexistent/tty"),
        (("--tty", "/dev/null"), "/dev/null"),
    ]:
        code, said = start(*options)
        assert code == 3 and named in said, (options, code, said)
    assert start("--stdio") == (0, "")
    assert subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.startswith("cloister-host ")


def main() -> None:
    """Run all checks against one binary."""
    binary = sys.argv[1]
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 20261122
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3000
    check_whole_path(binary)
    check_outside(binary)
    check_resync(binary)
    check_requests_before_hello(binary)
    check_bad_parameters(binary)
    check_too_much_to_store(binary)
    check_results_are_bounded(binary)
    check_failures_to_open(binary)
    check_less_shared_memory(binary)
    check_two_clients(binary)
    check_lines(binary)
    check_refused_starts(binary)
    check_wild_requests(binary, seed, rounds)


if __name__ == "__main__":
    main()
