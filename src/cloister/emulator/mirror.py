"""Where Debian's packages come from: the mirror that this host's own apt uses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cloister.errors import EnclaveUnavailable

__all__ = ["find_mirror", "read_sources"]

_ETC = Path("/etc/apt")
_VARIABLE = "CLOISTER_DEBIAN_MIRROR"
_SCHEMES = ("http://", "https://", "file:/")
_NO = {"no", "false", "without", "off", "disable"}


class Source(NamedTuple):
    """A place that apt fetches from: its address and one of its suites."""

    uri: str
    suite: str


def find_mirror(etc: Path = _ETC) -> str:
    """The address of a Debian mirror, without a slash at its end.

    `$CLOISTER_DEBIAN_MIRROR`, else the first of apt's sources that holds Debian itself: its path ends in `/debian`.

    Args:
        etc: apt's folder of settings.

    Raises:
        EnclaveUnavailable: there is none.
    """
    if own := os.environ.get(_VARIABLE):
        if not own.startswith(_SCHEMES):
            raise EnclaveUnavailable(f"{_VARIABLE}: expected an address such as https://HOST/debian, but got `{own}`")
        return own.rstrip("/")
    for uri, suite in read_sources(etc):
        if uri.startswith(_SCHEMES) and uri.rstrip("/").endswith("/debian") and not suite.endswith("-security"):
            return uri.rstrip("/")
    raise EnclaveUnavailable(
        f"no Debian mirror in {etc}/sources.list and {etc}/sources.list.d",
        f"set {_VARIABLE} to the address of one, such as https://HOST/debian",
    )


def read_sources(etc: Path) -> Iterator[Source]:
    """What apt fetches from: entries of both forms, in the order of the files."""
    for path in (etc / "sources.list", *sorted(etc.glob("sources.list.d/*"))):
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".list":
            yield from _read_lines(text)
        elif path.suffix == ".sources":
            yield from _read_paragraphs(text)


def _read_lines(text: str) -> Iterator[Source]:
    """`deb [options] URI suite component…`."""
    for line in text.splitlines():
        if found := re.match(r"\s*deb\s+(?:\[[^]]*\]\s+)?([^\s#]+)\s+([^\s#]+)", line):
            yield Source(*found.groups())


def _read_paragraphs(text: str) -> Iterator[Source]:
    """Paragraphs of `Field: value`, in which a line that starts with a space goes on with the one before."""
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for paragraph in re.split(r"\n\s*\n", kept):
        fields = {
            name.lower(): value.split()
            for name, value in re.findall(r"^([\w-]+):(.*(?:\n[ \t]+.*)*)", paragraph, re.MULTILINE)
        }
        if "deb" not in fields.get("types", []) or _NO & {word.lower() for word in fields.get("enabled", [])}:
            continue
        for uri in fields.get("uris", []):
            yield from (Source(uri, suite) for suite in fields.get("suites", []))
