"""Tables, spans of time and progress."""

import os
import subprocess
import sys

import pytest

from cloister.cli import ui
from cloister.errors import UserError


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (9.4, "9 s"), (65, "1 min 5 s"), (3600, "1 h 0 min"), (7384, "2 h 3 min")]
)
def test_spans_of_time(seconds, text):
    assert ui.ago(seconds) == text


def test_numbers():
    assert ui.number(1234567) == "1,234,567"
    assert ui.percent(0.97222) == "97.22 %"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_tables_keep_to_the_width_and_end_lines_without_spaces(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    ui.table("Title", ["a", "b", "c"], [("x" * 30, "words of some length in a cell", "3")] * 2, right="c")
    ui.fields("", [("name", "words " * 30)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    assert "".join(lines).count("x") == 60


def test_next_steps_are_never_wrapped(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    ui.next_steps("Next", [["cloister", "run", "a-long-name.cloister", "--data", "some where"]])
    assert "  cloister run a-long-name.cloister --data 'some where'\n" in capsys.readouterr().out


def test_progress_in_a_log_is_seldom(monkeypatch, capsys):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(ui.time, "monotonic", lambda: next(clock))
    with ui.progress() as progress:
        for done in range(1, 11):
            progress.update(done, 10, "working")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "working: 3 of 10, about 28 s left"
    assert len(captured.err.splitlines()) == 3


def test_progress_can_be_turned_off(monkeypatch, capsys):
    monkeypatch.setattr(ui, "_LOG_EVERY_S", 0)
    monkeypatch.setenv("CLOISTER_NO_PROGRESS", "1")
    with ui.progress() as progress:
        progress.update(1, 2, "working")
    assert capsys.readouterr().err == ""


HOSTILE = "a\x1b]0;title\x07b\x1b[2J\u202ec\rd"


def test_names_cannot_steer_the_terminal(capsys):
    ui.table(HOSTILE, ["x"], [(HOSTILE,)])
    ui.fields(HOSTILE, [("x", HOSTILE)])
    ui.next_steps("Next", [["cloister", HOSTILE]])
    ui.say(HOSTILE)
    ui.failed(UserError(HOSTILE, HOSTILE))
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert not {"\x1b", "\x07", "\u202e", "\r"} & set(text)
        assert "\\x1b[2J\\u202ec\\rd" in text


@pytest.mark.parametrize("form", ["table", "json"])
def test_any_encoding_of_the_terminal_will_do(bundle, form):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    finished = subprocess.run(
        [sys.executable, "-m", "cloister", "inspect", str(bundle), "-f", form],
        capture_output=True, check=True, env=environment,
    )  # fmt: skip
    assert finished.stdout.decode("ascii" if form == "table" else "utf-8")
    assert finished.stderr == b""


def test_progress_is_a_bar_on_a_terminal(tmp_path):
    """In a terminal of its own; the bar is gone when the work is done."""
    import pty

    script = (
        "import time\nfrom cloister.cli import ui\n"
        "with ui.progress() as p:\n"
        " for i in range(5):\n  p.update(i + 1, 5, 'stirring'); time.sleep(0.1)\n"
        " p.update(1, 2, 'baking'); time.sleep(0.3)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    environment.pop("CLOISTER_NO_PROGRESS", None)
    process = subprocess.Popen([sys.executable, "-c", script], stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait(30) == 0
    assert b"stirring" in shown
    assert b"baking" in shown
    assert b"1/2" in shown
    assert shown.rstrip().endswith(b"\x1b[2K")
