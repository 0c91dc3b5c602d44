"""The real process: starts, protections, and frames that nobody should send.

`python test_enclave.py BINARY [SEED [ROUNDS]]`; a binary built with sanitizers must never report anything.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

from enclave_client import (
    BOTH,
    CIPHERS,
    INFO_BYTES,
    INPUT,
    LOAD_BYTES,
    LOADED_AT,
    OUTPUT,
    PAYLOAD,
    STORE,
    Bundle,
    Enclave,
    linear_program,
    state_folder,
    words,
)

IMAGES, EXPECTED = bytes(range(1, 9)), struct.pack("8b", 2, 4, -3, -4, 10, 12, -7, -8)
ALLOWED_EXITS = {0, 3}


def started(binary: str, state: str, *, suite: int = 1) -> tuple[Enclave, Bundle]:
    """An enclave and a bundle for it."""
    enclave = Enclave(binary, state)
    program, slices = linear_program()
    return enclave, Bundle(enclave.info()[24:56], program, slices, suite=suite)


def check_whole_path(binary: str, suite: int) -> None:
    """Load and run; the key survives a restart; protections are on."""
    state = state_folder()
    enclave, bundle = started(binary, state, suite=suite)
    assert enclave.load(bundle) == 0
    n_stages, n_slices, inside_bytes = struct.unpack_from("<IIQ", enclave.read(LOADED_AT, 16))
    assert (n_stages, n_slices) == (1, 2)
    sealed = b"".join(bundle.slices)
    assert enclave.run(0, IMAGES, 2, 8, sealed=sealed, count=2) == (0, (0, 0, 2), EXPECTED)
    stats = enclave.stats()
    assert stats[2:6] == (1, 2, 4, 256), stats
    assert 0 < stats[1] <= stats[0] <= inside_bytes, (stats, inside_bytes)
    assert enclave.end() == (0, "")

    again = Enclave(binary, state)
    info = again.info()
    flags = struct.unpack_from("<I", info, 8)[0]
    assert flags & 7 == 7 and flags < 64, flags
    assert info[56:65] == b"cloister " and info[120:] == bytes(40), info
    if flags & 32:  # not in builds with sanitizers
        for thread in Path(f"/proc/{again.process.pid}/task").iterdir():
            assert "Seccomp:\t2" in (thread / "status").read_text()
    assert again.load(bundle) == 0
    assert again.end() == (0, "")
    other = Enclave(binary, state_folder())
    assert other.load(bundle) == 0xFFFF0001
    assert other.end() == (0, "")


def check_open(binary: str, suite: int) -> None:
    """Slices that stay are open before the first run; a changed one is told, and can be mended."""
    enclave = Enclave(binary, state_folder())
    key = enclave.info()[24:56]
    bundle = Bundle(key, *linear_program(resident=True), suite=suite)
    assert enclave.open(0, bundle.slices) == 0xFFFF0007
    assert enclave.load(bundle) == 0
    broken = bytes([bundle.slices[1][0] ^ 1]) + bundle.slices[1][1:]
    assert enclave.open(0, [bundle.slices[0], broken]) == 0xFFFF3071
    assert enclave.run(0, IMAGES, 2, 8)[:2] == (0, (1, 1, 0))  # only the second one is needed
    assert enclave.open(1, bundle.slices[1:]) == 0
    assert enclave.run(0, IMAGES, 2, 8, resume=1)[0] == 0xFFFF0007  # that run was forgotten
    assert enclave.run(0, IMAGES, 2, 8) == (0, (0, 0, 2), EXPECTED)
    assert enclave.stats()[4] == 2
    assert enclave.end() == (0, "")


def check_second_load(binary: str) -> None:
    """Another bundle in the same session computes with its own weights, also where slices stay open."""
    state = state_folder()
    for resident in (False, True):
        enclave = Enclave(binary, state)
        key = enclave.info()[24:56]
        for suite, factors in enumerate([(2, -1), (3, 5), (-4, 1), (2, -1)]):
            bundle = Bundle(key, *linear_program(resident=resident, factors=factors), suite=1 + suite % 2)
            expected = struct.pack("8b", *(x * factors[i // 2 % 2] for i, x in enumerate(IMAGES)))
            assert enclave.load(bundle) == 0
            assert enclave.run(0, IMAGES, 2, 8)[:2] == (0, (1, 0, 0))
            sealed = b"".join(bundle.slices)
            assert enclave.run(0, IMAGES, 2, 8, sealed=sealed, count=2) == (0, (0, 0, 2), expected)
        assert enclave.end() == (0, "")


def check_lanes(binary: str) -> None:
    """A group opens a streamed slice once; at each stop the results of finished groups are out, and no others."""
    images = bytes(range(1, 21))  # 5 images: groups of 2, 2, 1
    expected = struct.pack("20b", *(x * (2, -1)[i // 2 % 2] for i, x in enumerate(images)))
    enclave = Enclave(binary, state_folder())
    bundle = Bundle(enclave.info()[24:56], *linear_program(lanes=2))
    assert enclave.load(bundle) == 0
    enclave.write(4096 + 64, bytes(20))  # where the results go
    sealed, resume = b"", 0
    for group in range(3):
        for needed in range(2):
            first, count = (1 - needed, 1) if resume else (0, 0)
            answer = enclave.run(0, images, 5, 20, sealed=sealed, first=first, count=count, resume=resume)
            done = 8 * group
            assert answer == (0, (1, needed, 2 * group), expected[:done] + bytes(20 - done)), answer
            sealed, resume = bundle.slices[needed], 1
    answer = enclave.run(0, images, 5, 20, sealed=sealed, first=1, count=1, resume=1)
    assert answer == (0, (0, 0, 5), expected), answer
    stats = enclave.stats()
    assert stats[2:5] == (1, 5, 6), stats
    assert enclave.end() == (0, "")


def check_places(binary: str, suite: int) -> None:
    """Where the slot has room for several slices, the next is opened ahead; a changed one is told when it is due."""
    n_images = 500
    images = bytes(i % 60 for i in range(4 * n_images))
    expected = struct.pack(f"{4 * n_images}b", *(x * (2, -1)[i // 2 % 2] for i, x in enumerate(images)))
    enclave = Enclave(binary, state_folder())
    key = enclave.info()[24:56]
    for slot in (64, 127, 128, 256, 4096):
        bundle = Bundle(key, *linear_program(slot=slot), suite=suite)
        sealed = b"".join(bundle.slices)
        assert enclave.load(bundle) == 0
        before = enclave.stats()[4]
        for _ in range(2):
            answer = enclave.run(0, images, n_images, 4 * n_images, sealed=sealed, count=2)
            assert answer == (0, (0, 0, n_images), expected), answer[:2]
        assert enclave.stats()[4] - before == 4 * n_images
        for at in (0, len(sealed) - 1):
            broken = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
            answer = enclave.run(0, images, n_images, 4 * n_images, sealed=broken, count=2)
            assert answer[0] == 0xFFFF3071 and answer[2] == bytes(4 * n_images), answer[:2]
        assert enclave.run(0, images, n_images, 4 * n_images, sealed=bundle.slices[0], count=1)[:2] == (0, (1, 1, 0))
    assert enclave.end() == (0, "")


def check_refused_starts(binary: str) -> None:
    """Missing and wrong options are named; open state folders are refused."""

    def start(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    assert start() == (2, start()[1]) and "--socket" in start()[1]
    assert start("--heap")[0] == 2
    assert start("--color", "1")[0] == 2
    code, said = start("--socket", "0", "--payload", "0", "--store", "0", "--state", "/x", "--heap", "9")
    assert code == 2 and "socket" in said, said
    state = state_folder()
    enclave = Enclave(binary, state, bell=255)
    code, said = enclave.end()
    assert code == 2 and "--bell" in said and "255" in said, said
    os.mkdir(state, 0o755)
    os.chmod(state, 0o755)
    enclave = Enclave(binary, state)
    code, said = enclave.end()
    assert code == 3 and "0700" in said, said


def check_bad_parameters(binary: str) -> None:
    """Parameters outside their region, or of the wrong kind for it."""
    enclave, _ = started(binary, state_folder())
    size = 1 << 20
    for param in [
        (OUTPUT, PAYLOAD, size - 159, 160),
        (OUTPUT, PAYLOAD, size + 1, 0),
        (OUTPUT, PAYLOAD, (1 << 64) - 64, 160),
        (OUTPUT, PAYLOAD, 0, (1 << 64) - 1),
        (OUTPUT, STORE, 0, 0),
        (BOTH, STORE, 0, 0),
        (INPUT, STORE, 0, 1),
        (INPUT, 0, 0, 0),
        (INPUT, 3, 0, 0),
        (4, PAYLOAD, 0, 0),
        (0, PAYLOAD, 0, 0),
        (0, 0, 1, 0),
        (0, 0, 0, 1),
    ]:
        assert enclave.call(1, param)[0] == 0xFFFF0006, param
    assert enclave.call(99)[0] == 0xFFFF0009
    enclave.info()
    assert enclave.exchange(b"CLRX" + bytes(108)) is None
    code, said = enclave.end()
    assert code == 3 and "malformed" in said, (code, said)


def check_bell(binary: str) -> None:
    """The response to what is asked by the bell, and to what wakes the process, lies there."""
    enclave, _ = started(binary, state_folder())
    for sequence in range(1, 200):
        request = b"CLRQ" + words(sequence, 99, 0) + bytes(96)
        answer = enclave.exchange_by_bell(request)
        assert answer == b"CLRS" + words(sequence, 0xFFFF0009, 0) + bytes(32), answer
        if sequence % 50 == 0:
            time.sleep(0.01)  # it falls asleep
    assert enclave.exchange_by_bell(b"CLRX" + bytes(108)) is None
    code, said = enclave.end()
    assert code == 3 and "malformed" in said, (code, said)


def check_sleeper_heeds_the_socket_alone(binary: str) -> None:
    """What is asked by the bell while the process sleeps is not answered twice: it waits for the socket."""
    enclave = Enclave(binary, state_folder(), bell_state=2)
    time.sleep(0.3)  # one that looks takes what is there for a request
    assert enclave.process.poll() is None and os.pread(enclave.bell_fd, 4, 0) == words(2)
    for sequence in (1, 2):
        answer = enclave.exchange_by_bell(b"CLRQ" + words(sequence, 99, 0) + bytes(96))
        assert answer == b"CLRS" + words(sequence, 0xFFFF0009, 0) + bytes(32), answer
    assert enclave.end() == (0, "")


def check_wild_bell(binary: str, seed: int, rounds: int) -> None:
    """Whatever a client does to the bell: the process answers, waits for the socket, or ends; it never crashes."""
    rng = random.Random(seed)
    state = state_folder()
    while rounds > 0:
        enclave, bundle = started(binary, state)
        for _ in range(min(rounds, 100)):
            rounds -= 1
            frame = wild_frame(rng, enclave, bundle)
            os.pwrite(enclave.bell_fd, words(rng.choice([0, 1, 2, 3, 4, rng.getrandbits(32)])), 0)
            os.pwrite(enclave.bell_fd, frame, 64)
            try:
                enclave.socket.send(frame)
            except (BrokenPipeError, ConnectionResetError):
                break
            os.pwrite(enclave.bell_fd, rng.randbytes(4), rng.choice([0, 64, 72, rng.randrange(64, 236)]))
        code, said = enclave.end()
        assert code in ALLOWED_EXITS and "Sanitizer" not in said and "runtime error" not in said, (code, said)


def wild_frame(rng: random.Random, enclave: Enclave, bundle: Bundle) -> bytes:
    """A frame that is right in most places, or nothing like one."""
    if rng.random() < 0.02:
        return rng.randbytes(112)
    command = rng.choice([1, 2, 2, 3, 3, 3, 3, 4, 5, 5, rng.getrandbits(32)])
    n_program, count = len(bundle.program), rng.choice([0, 1, 2])
    shapes = {
        1: [(OUTPUT, PAYLOAD, 0, INFO_BYTES)],
        4: [(OUTPUT, PAYLOAD, 0, 64)],
        2: [(INPUT, PAYLOAD, 0, LOAD_BYTES), (INPUT, PAYLOAD, 256, n_program), (OUTPUT, PAYLOAD, LOADED_AT, 32)],
        3: [
            (BOTH, PAYLOAD, 8192, 64),
            (INPUT, PAYLOAD, 4096, 8),
            (OUTPUT, PAYLOAD, 4200, 8),
            (INPUT, PAYLOAD, 5000, 80 * count),
        ],
        5: [(INPUT, PAYLOAD, 8256, 16), (INPUT, PAYLOAD, 5000, 80 * count)],
    }
    params = [list(p) for p in shapes.get(command, [])] + [[0, 0, 0, 0]] * 4
    enclave.write(0, bundle.request)
    enclave.write(256, bundle.program)
    enclave.write(5000, b"".join(bundle.slices))
    enclave.write(8192, words(0, 2, 0, count, rng.choice([0, 0, 1])) + bytes(44) + words(0, count, 0, 0))
    for _ in range(rng.choice([0, 0, 1, 1, 2, 5])):
        where = rng.random()
        if where < 0.5:
            at = rng.choice([rng.randrange(9000), rng.randrange(8192, 8272), rng.randrange(LOAD_BYTES)])
            enclave.write(at, rng.randbytes(rng.choice([1, 4])))
        else:
            param = list(params[rng.randrange(4)])
            param[rng.randrange(4)] = rng.choice([0, 1, 2, 3, 4, 64, 4096, 1 << 20, rng.getrandbits(64)])
            param[0] &= 0xFFFFFFFF
            param[1] &= 0xFFFFFFFF
            params[rng.randrange(4)] = param
    frame = b"CLRQ" + words(rng.getrandbits(32), command, 0 if rng.random() < 0.99 else 1)
    return frame + b"".join(struct.pack("<IIQQ", *p) for p in params[:4])


def check_wild_frames(binary: str, seed: int, rounds: int) -> None:
    """The process answers or ends; it never crashes."""
    rng = random.Random(seed)
    state = state_folder()
    answers: dict[int, int] = {}
    while rounds > 0:
        enclave, bundle = started(binary, state, suite=rng.choice([1, 2]))
        answer: bytes | None = b""
        for _ in range(min(rounds, 400)):
            rounds -= 1
            answer = enclave.exchange(wild_frame(rng, enclave, bundle))
            if answer is None:
                break
            result = struct.unpack_from("<I", answer, 8)[0]
            answers[result] = answers.get(result, 0) + 1
        code, said = enclave.end()
        assert code in ALLOWED_EXITS and "Sanitizer" not in said and "runtime error" not in said, (code, said)
        assert (answer is None) == (code == 3), (code, said)
    print("seed", seed, "answers", {hex(k): n for k, n in sorted(answers.items())})


def main() -> None:
    """Run all checks against one binary."""
    binary = sys.argv[1]
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 20260803
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 4000
    for suite in CIPHERS:
        check_whole_path(binary, suite)
        check_open(binary, suite)
        check_places(binary, suite)
    check_second_load(binary)
    check_lanes(binary)
    check_refused_starts(binary)
    check_bad_parameters(binary)
    check_bell(binary)
    check_sleeper_heeds_the_socket_alone(binary)
    check_wild_frames(binary, seed, rounds)
    check_wild_bell(binary, seed, rounds // 4)


if __name__ == "__main__":
    main()
