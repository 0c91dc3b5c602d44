"""Texts of `--help`, held as files. `CLOISTER_UPDATE_GOLDEN=1 pytest tests/cli/test_help.py` writes them anew."""

import os
from pathlib import Path

import click
import pytest

import cloister as package
from cloister.cli import cloister

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = [
    *("", "demo", "train", "measure", "protect", "run", "inspect", "keys", "keys show", "keys export"),
    *("emulator", "emulator up", "emulator down", "emulator status", "emulator logs"),
    *("bench", "reproduce", "reproduce mo2019-exposure", "reproduce yang2024-cost", "doctor"),
]


def find(words):
    command = cloister
    for word in words:
        command = command.commands[word]
    return command


def options():
    for name in COMMANDS:
        for option in find(name.split()).params:
            if isinstance(option, click.Option) and option.allow_from_autoenv:
                yield pytest.param(name, option, id=f"{name} {option.opts[-1]}")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_as_recorded(call, name):
    outcome = call(*name.split(), "--help")
    path = GOLDEN / f"{name.replace(' ', '-') or 'cloister'}.txt"
    if os.environ.get("CLOISTER_UPDATE_GOLDEN"):
        path.write_text(outcome.out)
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out == path.read_text()


def test_every_command_has_a_recorded_help():
    known = {
        f"{name} {sub}".strip()
        for name, command in cloister.commands.items()
        for sub in ["", *getattr(command, "commands", [])]
    }
    assert known | {""} == set(COMMANDS)


def test_help_lists_the_exit_codes(call):
    text = call("--help").out
    for code in (
        "0  ok",
        "2  wrong usage or bad input",
        "3  failure of the enclave",
        "130  interrupted",
        "141  whoever read",
    ):
        assert code in text


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(call, flag):
    assert call(flag).out == f"cloister {package.__version__}\n"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("", "keys", "emulator", "reproduce")])
def test_every_command_has_formats(name):
    assert any("--format" in option.opts and "-f" in option.opts for option in find(name.split()).params)


@pytest.mark.parametrize(("name", "option"), list(options()))
def test_every_option_is_read_from_the_variable_of_its_name(name, option):
    long = max(option.opts, key=len).removeprefix("--").replace("-", "_")
    command = ["cloister", *name.replace("-", "_").split()]
    own = option.envvar or "_".join([*command, option.name]).upper()
    assert own == "_".join([*command, long]).upper()


def test_option_from_the_environment(call, bundle, monkeypatch):
    monkeypatch.setenv("CLOISTER_INSPECT_FORMAT", "json")
    assert call("inspect", bundle).document["model"] == "vgg7"


def test_devices_from_the_environment(call, monkeypatch):
    monkeypatch.setenv("CLOISTER_PROTECT_FOR", "local nobody.pub")
    outcome = call("protect", "zoo:vgg7", "--data", "digits")
    assert outcome.code == 2
    assert "nobody.pub" in outcome.err
