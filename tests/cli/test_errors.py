"""Exit codes and messages: every class of error, as a user sees it."""

import inspect
import os
import signal
import subprocess
import sys

import click
import pytest

from cloister import errors
from cloister.cli import cloister, main, ui

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.CloisterError)]
USER_ERRORS = {"UserError", "TargetError", "DataError", "PlanError", "InputError", "OutputExists", "UnsupportedModel"}


@pytest.fixture
def failing(call, monkeypatch):
    """Run `doctor` in such a way that it raises something."""

    def run(error):
        def raise_it(**_):
            raise error

        monkeypatch.setattr(cloister.commands["doctor"], "callback", raise_it)
        return call("doctor")

    return run


def make(kind):
    if kind is errors.UnsupportedModel:
        return kind("what", [("conv1", "aten.foo", "why")], "do this")
    return kind("what", "do this")


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_its_exit_code(failing, kind):
    outcome = failing(make(kind))
    assert outcome.code == (2 if kind.__name__ in USER_ERRORS else 3)
    assert outcome.out == ""
    assert outcome.err.startswith("cloister: error: what\n\n")
    assert outcome.err.endswith("\nhint: do this\n")


def test_error_without_a_hint_is_one_line(failing):
    assert failing(errors.UserError("what")).err == "cloister: error: what\n"


def test_unsupported_model_lists_all_its_problems(failing):
    problems = [(f"layer{i}", f"aten.op{i}", f"reason {i}") for i in range(3)]
    text = failing(errors.UnsupportedModel("3 operations", problems, "replace them")).err
    for cell in [cell for row in problems for cell in row]:
        assert cell in text
    assert text.index("3 operations") < text.index("layer0") < text.index("hint: replace them")


def test_markup_in_messages_is_left_alone(failing):
    assert failing(errors.UserError("got [red]x[/red] :smile: [1, 2]")).err == (
        "cloister: error: got [red]x[/red] :smile: [1, 2]\n"
    )


def test_unexpected_error_is_short_and_tells_how_to_get_the_traceback(failing):
    outcome = failing(KeyError("x"))
    assert outcome.code == 3
    assert outcome.err.startswith("cloister: error: unexpected KeyError: 'x'\n\nhint: ")
    assert "CLOISTER_TRACEBACK=1" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("error", [KeyError("x"), errors.UserError("what")])
def test_traceback_on_request(failing, monkeypatch, error):
    monkeypatch.setenv("CLOISTER_TRACEBACK", "1")
    text = failing(error).err
    assert text.startswith("Traceback")
    assert "raise_it" in text
    assert "cloister: error: " in text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interruption_exits_with_130(failing, error):
    outcome = failing(error)
    assert outcome.code == 130
    assert outcome.err.strip() == "cloister: interrupted"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_ended_by_a_signal_what_is_under_way_is_cleaned_up(number):
    code = f"""
import os, signal, sys, time
from cloister.cli import cloister, main
def work(**_):
    try:
        os.kill(os.getpid(), {number})
        time.sleep(20)
    finally:
        os.kill(os.getpid(), {number})  # somebody is impatient
        print("cleaned up")
cloister.commands["doctor"].callback = work
signal.signal({number}, signal.SIG_DFL)
sys.argv[1:] = ["doctor"]
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + number, "cleaned up\n")
    assert done.stderr.strip() == f"cloister: ended by {number.name}"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["nonsense"], "No such command"),
        (["inspect"], "Missing argument"),
        (["inspect", "a", "b"], "unexpected extra argument"),
        (["run", "x.cloister", "--limit", "0"], "--limit"),
        (["run", "x.cloister"], "either --data or --input"),
        (["run", "x.cloister", "--data", "digits", "--input", "x.npy"], "either --data or --input"),
        (["run", "x.cloister", "--input", "x.npy"], "-o OUT.npy"),
        (["run", "x.cloister", "--data", "digits", "--enclave", "sgx"], "but got `sgx`"),
        (["protect", "zoo:vgg7", "--budget", "much"], "expected something like `8MiB`, but got `much`"),
        (["protect", "zoo:vgg7", "--input-shape", "3,0"], "expected positive sizes"),
        (["protect", "zoo:vgg7", "--bits", "16"], "--bits"),
        (["train", "zoo:vgg7"], "--data"),
        (["doctor", "-f", "xml"], "--format"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_the_help(call, args, expected):
    outcome = call(*args)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("cloister: error: ")
    assert expected in outcome.err
    assert "--help` explains its options" in outcome.err


#: Each lacks what it would work with: that the output is refused first shows that no work was begun.
WRITERS = {
    "protect": ["protect", "zoo:nothing", "-o"],
    "run": ["run", "nothing.cloister", "--data", "nothing", "-o"],
    "train": ["train", "zoo:nothing", "--data", "nothing", "-o"],
    "keys export": ["keys", "export", "--"],
}


@pytest.mark.parametrize("args", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("out", ["", ".", "..", "/"])
def test_folder_as_output_is_bad_input(call, args, out):
    for force in ([], ["--force"]):
        outcome = call(*args[:-1], *force, args[-1], out)
        assert outcome.code == 2
        assert "expected the name of a file" in outcome.err


@pytest.mark.parametrize("args", WRITERS.values(), ids=WRITERS)
def test_missing_folder_of_the_output_is_found_before_any_work(call, args):
    outcome = call(*args, "no/such/folder/file")
    assert outcome.code == 2
    assert "cannot be written" in outcome.err
    assert "`no/such/folder`" in outcome.err


def test_demo_refuses_a_file_as_its_folder(call, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/in"):
        outcome = call("demo", "--force", "-o", out)
        assert outcome.code == 2
        assert "cannot be made" in outcome.err


@pytest.mark.parametrize("inside", ["all", "none"])
@pytest.mark.parametrize(
    ("device", "expected", "code"),
    [
        ("nosuch.pub", "`nosuch.pub`", 2),
        ("optee", "there is no OP-TEE on this machine", 3),
    ],
)
def test_unknown_device_is_found_before_any_work(call, inside, device, expected, code):
    outcome = call("protect", "zoo:nothing", "--inside", inside, "--for", "local", "--for", device)
    assert outcome.code == code
    assert expected in outcome.err


def test_no_command_shows_the_help_as_talk(call):
    outcome = call()
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("Usage: cloister")


def test_near_option_is_suggested(call):
    assert "--inside" in call("protect", "zoo:vgg7", "--insid", "all").err


def test_colours_only_where_wanted(monkeypatch):
    """NO_COLOR wins over a terminal that could show them."""

    class Terminal:
        def __init__(self):
            self.text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    monkeypatch.setenv("TERM", "xterm-256color")
    shown = {}
    for no_color in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_color)
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        ui.failed(errors.UserError("what", "do this"))
        shown[no_color] = terminal.text
    assert "\x1b[1;31m" in shown[""]
    assert "\x1b[31m" not in shown["1"]
    assert "31m" not in shown["1"]


def test_module_is_a_program():
    finished = subprocess.run(
        [sys.executable, "-m", "cloister", "inspect", "nothing.cloister"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("cloister: error: nothing.cloister")


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
@pytest.mark.parametrize(
    "args",
    [["inspect", "{bundle}"], ["inspect", "{bundle}", "-f", "json"], ["--help"], ["inspect", "nothing.cloister"], []],
    ids=" ".join,
)
def test_closed_pipe_ends_it_as_other_commands(bundle, closed, args):
    """`cloister inspect … | head -1`; a stream that has nothing to say does not notice."""
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {closed: write}
    command = [sys.executable, "-m", "cloister", *(word.format(bundle=bundle) for word in args)]
    process = subprocess.run(command, check=False, **streams)
    os.close(write)
    fails = args in ([], ["inspect", "nothing.cloister"])
    talks = "stderr" if fails else "stdout"
    assert process.returncode == (-signal.SIGPIPE if closed == talks else 2 if fails else 0)
    if closed == "stdout" and not fails:
        assert process.stderr == b""


def test_main_returns_and_does_not_exit():
    assert main(["--version"]) == 0
