"""`cloister emulator`: a real OP-TEE in an emulated machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
import msgspec

from cloister.cli import options, ui
from cloister.units import format_bytes

if TYPE_CHECKING:
    from cloister.emulator import Status

__all__ = ["emulator"]

_F = TypeVar("_F", bound=Callable[..., Any])
_LABEL = "a demonstration: whoever runs the emulator reads all of its memory, and its boot and storage keys are public"


class Application(msgspec.Struct, frozen=True, kw_only=True):
    """The trusted application of a machine that runs."""

    version: str
    isolation: str
    fingerprint: str
    public_key: str
    heap_bytes: int


class EmulatorDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `cloister emulator up`, `down` and `status` print with `-f json`."""

    schema: Literal["cloister.emulator/1"] = "cloister.emulator/1"
    machine: str
    board: str
    state: Literal["running", "not ready", "stopped"]
    process_id: int | None
    application: Application | None
    clients: tuple[int, ...]
    folder: str
    warning: str = _LABEL


class LogDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `cloister emulator logs -f json` prints."""

    schema: Literal["cloister.emulator-log/1"] = "cloister.emulator-log/1"
    machine: str
    world: str
    lines: list[str]


def _machine(command: _F) -> _F:
    """`--machine`: which one."""
    return click.option(
        "--machine",
        default="virt",
        show_default=True,
        metavar="NAME",
        help="`virt`: QEMU's board with secure RAM; `rpi3`: Raspberry Pi 3, without.",
    )(command)


@click.group()
def emulator() -> None:
    """Run a real OP-TEE in an emulated machine.

    Linux, OP-TEE and the trusted application run in QEMU, from Debian's packages; nothing of the host changes. It is
    for trying and testing, not for protecting: whoever runs it reads all of its memory.

    What is fetched and built lies in $CLOISTER_CACHE, else ~/.cache/cloister; storage and logs in $CLOISTER_STATE,
    else ~/.local/state/cloister.
    """


@emulator.command()
@_machine
@click.option("--fresh", is_flag=True, help="Build everything anew, and start from nothing. Its storage stays.")
@options.output_format
def up(machine: str, fresh: bool, format: str) -> None:
    """Start the machine, and wait for its first answer.

    The first time, it fetches packages from the Debian mirror of the host's apt, or from $CLOISTER_DEBIAN_MIRROR, and
    builds what is needed. Later it goes on from a saved state.
    """
    from cloister import emulator as machines

    with ui.progress() as progress:
        status = machines.up(machine, fresh=fresh, progress=progress)
    _print(status, format)
    if format == "table":
        other = [] if machine == "virt" else ["--machine", machine]
        enclave = "emulator" if machine == "virt" else f"emulator:{machine}"
        ui.next_steps(
            "Next",
            [
                ["cloister", "keys", "show", "--enclave", enclave],
                ["cloister", "run", "FILE.cloister", "--data", "DATA", "--enclave", enclave],
                ["cloister", "emulator", "down", *other],
            ],
        )


@emulator.command()
@_machine
@options.output_format
def down(machine: str, format: str) -> None:
    """End the machine. Its storage stays, with the device key in it."""
    from cloister import emulator as machines

    _print(machines.down(machine), format)


@emulator.command()
@_machine
@options.output_format
def status(machine: str, format: str) -> None:
    """Tell whether the machine runs, and whom it serves."""
    from cloister import emulator as machines

    _print(machines.status(machine), format)


@emulator.command()
@_machine
@click.option("--world", type=click.Choice(["linux", "optee"]), default="linux", show_default=True, help="Whose.")
@options.output_format
def logs(machine: str, world: Literal["linux", "optee"], format: str) -> None:
    """Print what Linux or OP-TEE wrote since the machine was started."""
    from cloister import emulator as machines

    lines = machines.logs(machine, world).splitlines()
    if format == "json":
        ui.json(LogDocument(machine=machine, world=world, lines=lines))
    else:
        ui.lines(lines)


def _print(status: Status, format: str) -> None:
    document = _document(status)
    if format == "json":
        ui.json(document)
        return
    rows = [("machine", f"{document.machine}, board {document.board}"), ("state", document.state)]
    if status.unready_process_id:
        what = "of an `up` that is under way, or was killed: then `cloister emulator down` ends it"
        rows.append(("process", f"{status.unready_process_id}, {what}"))
    if status.start and document.application:
        how = "a saved state" if status.start.restored else "nothing"
        rows += [
            ("process", f"{document.process_id}, started from {how} in {status.start.seconds:.1f} s"),
            *([("saved state", f"none: {status.start.unsaved}")] if status.start.unsaved else []),
            ("application", document.application.version),
            ("heap", format_bytes(document.application.heap_bytes)),
            ("isolation", document.application.isolation),
            ("fingerprint", f"{document.application.fingerprint}, of the device key"),
            ("clients", ", ".join(map(str, document.clients)) or "none"),
        ]
    ui.fields("", [*rows, ("folder", document.folder), ("note", document.warning)])


def _document(status: Status) -> EmulatorDocument:
    return EmulatorDocument(
        machine=status.machine,
        board=status.board,
        state="running" if status.start else "not ready" if status.unready_process_id else "stopped",
        process_id=status.process_id or status.unready_process_id,
        application=_application(status),
        clients=status.clients,
        folder=status.folder,
    )


def _application(status: Status) -> Application | None:
    from cloister.bundle.keys import fingerprint

    if status.start is None:
        return None
    info = status.start.info
    return Application(
        version=info.version,
        isolation=info.isolation,
        fingerprint=fingerprint(info.public_key),
        public_key=info.public_key.hex(),
        heap_bytes=info.heap_bytes,
    )
