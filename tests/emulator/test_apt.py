"""What is fetched comes from a mirror that somebody else runs: it may lie, break off, or not be there."""

import shutil
import subprocess

import pytest

from cloister.emulator import apt
from cloister.errors import EnclaveUnavailable
from tests.emulator.debian import LISTS, PAYLOAD, Key, Mirror

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="not Debian: no apt")
needs_dpkg_source = pytest.mark.skipif(shutil.which("dpkg-source") is None, reason="dpkg-dev is missing")

DEB = "pool/thing_2.0-1_arm64.deb"


@pytest.fixture(scope="module")
def key():
    return Key()


@pytest.fixture
def mirror(tmp_path, key, monkeypatch):
    keyring = tmp_path / "keyring.gpg"
    keyring.write_bytes(key.keyring())
    monkeypatch.setattr(apt, "KEYRING", keyring)
    with Mirror(tmp_path / "mirror", key) as mirror:
        monkeypatch.setenv("CLOISTER_DEBIAN_MIRROR", mirror.address)
        yield mirror


@pytest.fixture
def private(tmp_path):
    return apt.Apt(tmp_path / "downloads", "trixie")


def test_packages(mirror, private, tmp_path):
    private.update()
    assert private.dependency("thing-meta") == "thing"
    assert private.unpack(["thing"], tmp_path / "un") == ["thing_1%3a2.0-1_arm64.deb"]
    assert (tmp_path / "un/thing/usr/share/thing/payload").read_bytes() == PAYLOAD


@needs_dpkg_source
def test_sources(mirror, private, tmp_path):
    private.update()
    assert private.unpack_sources(["thing"], tmp_path / "src") == ["thing_2.0-1.dsc"]
    assert (tmp_path / "src/thing/README").read_bytes() == b"read me"


def test_nothing_of_the_host_changes(mirror, private, tmp_path):
    def host():
        words = ["find", "/var/lib/apt", "/var/cache/apt", "/var/lib/dpkg", "-newermt", "@0", "-printf", "%p %s %T@\n"]
        return subprocess.run(words, capture_output=True, check=False).stdout

    before = host()
    private.update()
    private.unpack(["thing"], tmp_path / "un")
    assert host() == before


def test_what_is_there_is_not_fetched_again(mirror, private, tmp_path):
    private.update()
    private.unpack(["thing"], tmp_path / "one")
    mirror.breaks[DEB] = 0
    private.unpack(["thing"], tmp_path / "two")
    assert (tmp_path / "two/thing/usr/share/thing/payload").is_file()


def test_a_download_that_breaks_off_goes_on_where_it_was(mirror, private, tmp_path):
    private.update()
    mirror.breaks[DEB] = 1 << 20
    private.unpack(["thing"], tmp_path / "un")
    asked = [rest for path, rest in mirror.asked if path == DEB]
    assert asked == [False, True, True]
    assert (tmp_path / "un/thing/usr/share/thing/payload").read_bytes() == PAYLOAD


def test_a_download_that_always_breaks_off_is_named_and_goes_on_later(mirror, private, tmp_path):
    private.update()
    mirror.breaks[DEB] = 1 << 19
    with pytest.raises(EnclaveUnavailable, match=r"packages cannot be fetched") as caught:
        private.unpack(["thing"], tmp_path / "un")
    assert "run it again" in caught.value.hint
    assert not (tmp_path / "un").exists()
    del mirror.breaks[DEB]
    mirror.asked.clear()
    private.unpack(["thing"], tmp_path / "un")
    assert mirror.asked == [(DEB, True)]


def test_a_changed_package_is_refused(mirror, private, tmp_path):
    private.update()
    good = mirror.files[DEB]
    mirror.files[DEB] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(EnclaveUnavailable, match=r"Hash Sum mismatch|hashes of expected file"):
        private.unpack(["thing"], tmp_path / "un")
    assert not (tmp_path / "un").exists()
    mirror.files[DEB] = good
    private.unpack(["thing"], tmp_path / "un")


def test_a_changed_source_is_refused(mirror, private, tmp_path):
    private.update()
    mirror.files["pool/thing_2.0-1.tar.gz"] = bytes(len(mirror.files["pool/thing_2.0-1.tar.gz"]))
    with pytest.raises(EnclaveUnavailable, match=r"sources cannot be fetched"):
        private.unpack_sources(["thing"], tmp_path / "src")


def test_lists_without_a_signature_are_refused(mirror, private):
    mirror.sign(None)
    with pytest.raises(EnclaveUnavailable, match=r"package lists of http.* cannot be fetched(.|\n)*not signed"):
        private.update()


def test_lists_signed_by_another_are_refused(mirror, private):
    mirror.sign(Key())
    with pytest.raises(EnclaveUnavailable, match=r"package lists(.|\n)*(not signed|not available)"):
        private.update()


def test_changed_lists_are_refused(mirror, private):
    path = f"{LISTS}/binary-arm64/Packages"
    mirror.files[path] = mirror.files[path].replace(b"arm64", b"armhf")
    with pytest.raises(EnclaveUnavailable, match=r"package lists"):
        private.update()


def test_a_mirror_that_does_not_answer(mirror, private, monkeypatch):
    monkeypatch.setenv("CLOISTER_DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    with pytest.raises(EnclaveUnavailable, match=r"127\.0\.0\.1:9/debian cannot be fetched") as caught:
        private.update()
    assert "CLOISTER_DEBIAN_MIRROR" in caught.value.hint


def test_a_package_that_the_suite_lacks(mirror, private, tmp_path):
    private.update()
    with pytest.raises(EnclaveUnavailable, match=r"packages are not in Debian trixie(.|\n)*nothing-like-it"):
        private.unpack(["nothing-like-it"], tmp_path / "un")


def test_the_host_s_proxy_is_used_and_its_hooks_are_not(monkeypatch, tmp_path):
    settings = (
        'Acquire::http::Proxy "http://proxy.test:3128";\nAPT::Update::Post-Invoke:: "rm -f /var/cache/apt/*.bin";\n'
        'Acquire::https::Verify-Peer "true";\nAcquire::AllowInsecureRepositories "1";\n'
    )
    (tmp_path / "apt-config").write_text(f"#!/bin/sh\ncat <<'END'\n{settings}END\n")
    (tmp_path / "apt-config").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    kept = apt._host_acquire()
    assert kept == 'Acquire::http::Proxy "http://proxy.test:3128";\nAcquire::https::Verify-Peer "true";\n'
