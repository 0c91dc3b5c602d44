"""Packages of Debian, fetched and unpacked beside the host's own: nothing of its apt and dpkg changes.

apt runs with a folder of its own for everything, also without root; it checks signatures and digests, and goes on with
downloads that were broken off.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from cloister.emulator.hosttools import KEYRING, run_tool
from cloister.emulator.mirror import find_mirror

__all__ = ["Apt"]

_HINT = (
    "run it again: what was fetched is kept; CLOISTER_DEBIAN_MIRROR names another mirror, such as https://HOST/debian"
)
_HELPER = "/usr/lib/apt/apt-helper"
_SETTINGS = """\
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::Retries "3";
"""


class Apt:
    """A private apt for arm64.

    Args:
        folder: keeps its lists and downloads.
        suite: Debian's release, such as `trixie`.
    """

    def __init__(self, folder: Path, suite: str) -> None:
        self._folder = folder
        self._suite = suite
        self._downloads = folder / "downloads"

    def update(self) -> None:
        """Fetch the lists of packages.

        Raises:
            EnclaveUnavailable: no mirror, it does not answer, or its signature is not Debian's.
        """
        mirror = find_mirror()
        for name in ("lists/partial", "cache/archives/partial", "downloads"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        # sid's lists are valid for a week, and not every mirror is as fresh; what they say is signed all the same.
        options = f"signed-by={KEYRING}" + " check-valid-until=no" * (self._suite == "sid")
        entry = f"[{options}] {mirror} {self._suite} main\n"
        (self._folder / "sources.list").write_text(f"deb {entry}deb-src {entry}")
        (self._folder / "apt.conf").write_text(_SETTINGS.format(folder=self._folder) + _host_acquire())
        self._run("update", what=f"the package lists of {mirror} cannot be fetched")

    def dependency(self, package: str) -> str:
        """What a metapackage stands for: the first package that it depends on."""
        text = self._run("depends", package, program="apt-cache", what=f"{package} is not in Debian {self._suite}")
        found = re.search(r"^\s*Depends: (\S+)", text, re.MULTILINE)
        return found.group(1) if found else package

    def unpack(self, packages: Sequence[str], target: Path) -> list[str]:
        """Fetch packages, and unpack each into a folder of its name.

        Returns:
            The names of their files, which hold their versions.

        Raises:
            EnclaveUnavailable: a download breaks off, or is not what the list says.
        """
        files = self._fetch("packages", ["download"], packages, ".deb")
        target.mkdir(exist_ok=True)
        for package, file in files.items():
            words = ["dpkg-deb", "-x", self._downloads / file, target / package]
            run_tool(words, f"{file} cannot be unpacked", hint=_HINT)
        return list(files.values())

    def unpack_sources(self, packages: Sequence[str], target: Path) -> list[str]:
        """Fetch source packages, and unpack each, with Debian's patches, into a folder of its name.

        Returns:
            The names of their `.dsc` files, which hold their versions.

        Raises:
            EnclaveUnavailable: a download breaks off, or is not what the list says.
        """
        files = self._fetch("sources", ["source", "--download-only"], packages, ".dsc")
        target.mkdir(exist_ok=True)
        for package, file in files.items():
            # apt has checked the digest against the signed list; the uploader's own key need not be known here.
            words = ["dpkg-source", "--no-check", "--no-copy", "-x", self._downloads / file, target / package]
            run_tool(words, f"{file} cannot be unpacked", hint=_HINT)
        return list(files.values())

    def _fetch(self, kind: str, command: Sequence[str], packages: Sequence[str], suffix: str) -> dict[str, str]:
        """Fetch; the file of each package, of a source its description."""
        text = self._run(*command, "--print-uris", *packages, what=f"{kind} are not in Debian {self._suite}")
        wanted = re.findall(r"^'(\S+)' (\S+) \d+ (\S+:\S+)$", text, re.MULTILINE)
        # `apt-get download` starts anew what was broken off; its helper goes on with it.
        parts = [part for uri, name, digest in wanted for part in (uri, self._downloads / name, digest)]
        self._run("download-file", *parts, program=_HELPER, what=f"{kind} cannot be fetched")
        files = [name for _, name, _ in wanted if name.endswith(suffix)]
        return {package: next(file for file in files if file.startswith(f"{package}_")) for package in packages}

    def _run(self, *words: object, program: str = "apt-get", what: str) -> str:
        env = {"APT_CONFIG": str(self._folder / "apt.conf")}
        return run_tool([program, "-q", *words], what, cwd=self._folder, env=env, hint=_HINT)


def _host_acquire() -> str:
    """The host's settings of how to fetch, such as a proxy; its hooks stay out."""
    settings = run_tool(["apt-config", "dump"], "apt's settings cannot be read", env={"APT_CONFIG": os.devnull})
    kept = re.findall(r'^Acquire::(?:http|https|ftp|tor|ForceIPv|Check-)[^ ]* ".*";$', settings, re.MULTILINE)
    return "".join(f"{line}\n" for line in kept)
