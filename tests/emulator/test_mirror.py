import pytest

from cloister.emulator.mirror import find_mirror, read_sources
from cloister.errors import EnclaveUnavailable

LINES = """
# deb https://commented.test/debian trixie main
deb cdrom:[Debian]/ trixie main
deb [arch=amd64 signed-by=/k.gpg] https://other.test/apt stable main
deb-src https://sources.test/debian trixie main
deb http://security.test/debian-security trixie-security main
deb  [ arch=amd64 ] https://lines.test/pub/debian/ trixie main contrib # why
"""
PARAGRAPHS = """\
# A comment
Types: deb
URIs: https://off.test/debian
Suites: trixie
Enabled: no

Types: deb-src
URIs: https://sources.test/debian
Suites: trixie

Types: deb deb-src
# another
URIs: https://node.test/x
 https://paragraphs.test/debian
Suites: trixie
  trixie-updates
Components: main
"""


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("CLOISTER_DEBIAN_MIRROR", raising=False)


@pytest.fixture
def etc(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_lines(etc):
    (etc / "sources.list").write_text(LINES)
    assert find_mirror(etc) == "https://lines.test/pub/debian"


def test_paragraphs(etc):
    (etc / "sources.list.d" / "debian.sources").write_text(PARAGRAPHS)
    assert find_mirror(etc) == "https://paragraphs.test/debian"
    suites = {suite for uri, suite in read_sources(etc) if uri == "https://paragraphs.test/debian"}
    assert suites == {"trixie", "trixie-updates"}


def test_files_of_other_kinds_are_ignored(etc):
    (etc / "sources.list.d" / "old.list.save").write_text("deb https://saved.test/debian trixie main\n")
    (etc / "sources.list.d" / "b.list").write_text("deb https://b.test/debian trixie main\n")
    assert find_mirror(etc) == "https://b.test/debian"


def test_a_mirror_that_holds_only_security_updates_is_none(etc):
    (etc / "sources.list").write_text("deb https://one.test/debian trixie-security main\n")
    with pytest.raises(EnclaveUnavailable, match="no Debian mirror") as caught:
        find_mirror(etc)
    assert "CLOISTER_DEBIAN_MIRROR" in caught.value.hint


def test_no_sources_at_all(tmp_path):
    with pytest.raises(EnclaveUnavailable, match="no Debian mirror"):
        find_mirror(tmp_path / "nothing")


def test_the_variable_comes_first(etc, monkeypatch):
    (etc / "sources.list").write_text(LINES)
    monkeypatch.setenv("CLOISTER_DEBIAN_MIRROR", "file:/srv/debian/")
    assert find_mirror(etc) == "file:/srv/debian"


@pytest.mark.parametrize("value", ["mirror.test/debian", "trixie", "ssh://mirror.test/debian"])
def test_a_variable_that_is_no_address(etc, monkeypatch, value):
    monkeypatch.setenv("CLOISTER_DEBIAN_MIRROR", value)
    with pytest.raises(EnclaveUnavailable, match="expected an address"):
        find_mirror(etc)
