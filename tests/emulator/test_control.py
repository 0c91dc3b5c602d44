import contextlib
import os
import threading

import pytest

from cloister.emulator.control import control, make_pipes
from cloister.errors import EnclaveError, EnclaveUnavailable


@contextlib.contextmanager
def guest(folder, answer):
    """The other side of the line: `answer` gives the bytes for each of the host's lines."""
    make_pipes(folder)
    requests = os.open(folder / "control.in", os.O_RDWR)
    answers = os.open(folder / "control.out", os.O_RDWR)

    def serve():
        with os.fdopen(requests, "rb", closefd=False) as lines:
            for line in lines:
                if line == b"end\n":
                    return
                os.write(answers, answer(line))

    thread = threading.Thread(target=serve)
    thread.start()
    yield answers
    os.write(requests, b"end\n")
    thread.join()
    os.close(requests)
    os.close(answers)


def said(line, text=b"said", status=0):
    token = line.split()[0]
    return b"%s %d %d\n%s" % (token, status, len(text), text)


def test_an_answer(tmp_path):
    with guest(tmp_path, lambda line: said(line, b"a\nb \xff\n", 3)), control(tmp_path) as line:
        assert line.ask("shell", "x", seconds=10) == (3, "a\nb \ufffd")
        assert line.ask("ping", seconds=10) == (3, "a\nb \ufffd")


def test_what_nobody_waited_for_is_skipped(tmp_path):
    with guest(tmp_path, said) as answers:
        os.write(answers, b"NOTICE:  Booting\r\n\xb2\n0123456789abcdef 0 5\nstale\n")
        with control(tmp_path) as line:
            assert line.ask("ping", seconds=10) == (0, "said")


def test_an_echo_is_skipped(tmp_path):
    with guest(tmp_path, lambda line: line + said(line)), control(tmp_path) as line:
        assert line.ask("shell", "eA==", seconds=10) == (0, "said")


def test_requests_that_are_lost_are_made_again(tmp_path):
    seen = []

    def answer(line):
        seen.append(line)
        return said(line) if len(seen) > 2 else b""

    with guest(tmp_path, answer), control(tmp_path) as line:
        line.wait(seconds=20)
        assert len(seen) == 3
        assert line.ask("shell", seconds=10) == (0, "said")


def test_no_answer_is_named(tmp_path):
    with guest(tmp_path, lambda _: b""), control(tmp_path) as line:
        with pytest.raises(EnclaveError, match="does not answer `shell`"):
            line.ask("shell", seconds=0.05)
        with pytest.raises(EnclaveError, match="does not answer `ping`"):
            line.wait(seconds=0.05)


def test_no_machine_is_named(tmp_path):
    with pytest.raises(EnclaveUnavailable, match="not running"), control(tmp_path):
        pass
