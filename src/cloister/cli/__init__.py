"""The command line.

`main` turns arguments into an exit code; each command is a file of its own; `ui` does all printing. Nothing here
imports torch before a command needs it.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import click

from cloister import __version__
from cloister.cli import ui
from cloister.cli.bench import bench
from cloister.cli.demo import demo
from cloister.cli.doctor import doctor
from cloister.cli.emulator import emulator
from cloister.cli.inspect import inspect
from cloister.cli.keys import keys
from cloister.cli.measure import measure
from cloister.cli.protect import protect
from cloister.cli.reproduce import reproduce
from cloister.cli.run import run
from cloister.cli.train import train
from cloister.errors import CloisterError

__all__ = ["cloister", "main"]

_OK, _USAGE, _FAILED, _INTERRUPTED = 0, 2, 3, 130

_EPILOG = """\b
Exit codes:
    0  ok
    2  wrong usage or bad input
    3  failure of the enclave, of integrity, or unexpected
  130  interrupted; 129, 143 ended by SIGHUP, SIGTERM
  141  whoever read the output has gone (SIGPIPE)

\b
Environment:
  CLOISTER_<COMMAND>_<OPTION>  default of an option, such as
                               CLOISTER_PROTECT_BUDGET=4MiB
  CLOISTER_STATE               device keys, storage and logs; else
                               ~/.local/state/cloister
  CLOISTER_CACHE               what the emulator fetched and built;
                               else ~/.cache/cloister
  CLOISTER_DATA                data sets of papers that are
                               reproduced
  CLOISTER_DEBIAN_MIRROR       where the emulator fetches packages;
                               else from the mirror of the host's apt
  CLOISTER_NO_PROGRESS=1       no progress on stderr
  CLOISTER_TRACEBACK=1         tracebacks with errors
  NO_COLOR=1                   no colours
"""


class _Ended(KeyboardInterrupt):
    """Ended by a signal: what is under way is cleaned up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class _Commands(click.Group):
    """Commands in the order in which one uses them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they were added."""
        return list(self.commands)


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    __version__, "-V", "--version", prog_name="cloister", message="%(prog)s %(version)s", allow_from_autoenv=False
)
def cloister() -> None:
    """Keep the part of a neural network that remembers its training data inside an enclave."""


for _command in (demo, train, measure, protect, run, inspect, keys, emulator, bench, reproduce, doctor):
    cloister.add_command(_command)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: its arguments; those of the process if None, which signals then end as they do other commands.

    Returns:
        The exit code: 0 ok, 2 usage or bad input, 3 failure, 130 interrupted, 128 + N ended by signal N.
    """
    ui.prepare()
    if args is None:
        _prepare_signals()
    try:
        result: Any = cloister.main(
            args=args, prog_name="cloister", standalone_mode=False, auto_envvar_prefix="CLOISTER"
        )
    except click.exceptions.NoArgsIsHelpError as error:
        ui.usage(error.format_message())
        return _USAGE
    except click.ClickException as error:
        ui.failed(error, error.format_message(), _usage_hint(error))
        return _USAGE
    except (click.Abort, KeyboardInterrupt) as error:
        # click makes an Abort of each KeyboardInterrupt.
        by = error if isinstance(error, _Ended) else error.__cause__
        if isinstance(by, _Ended):
            ui.say(f"cloister: ended by {signal.Signals(by.number).name}")
            return 128 + by.number
        ui.say("cloister: interrupted")
        return _INTERRUPTED
    except CloisterError as error:
        ui.failed(error)
        return error.exit_code
    except Exception as error:
        return _unexpected(error)
    return result if isinstance(result, int) else _OK


def _prepare_signals() -> None:
    # click and rich would each make an exit code of their own of a closed pipe.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not break off the cleaning up
    raise _Ended(number)


def _usage_hint(error: click.ClickException) -> str | None:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"`{context.command_path} --help` explains its options" if context else None


def _unexpected(error: Exception) -> int:
    """Report what is no error of Cloister's: a package that this device does without, or a fault."""
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] != "cloister":
        hint = "`pip install cloister` without --no-deps installs it; running bundles on a device does not need it"
        ui.failed(error, f"this needs {error.name}, which is not installed", hint)
        return _USAGE
    ui.failed(error, f"unexpected {type(error).__name__}: {error}", _traceback_hint())
    return _FAILED


def _traceback_hint() -> str | None:
    if ui.traceback_asked():
        return None
    return "run it again with CLOISTER_TRACEBACK=1 for the traceback, and report it if it is a fault of Cloister's"
