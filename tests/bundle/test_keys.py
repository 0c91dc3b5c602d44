"""Public keys as text, and what `--for` accepts."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.bundle.keys import check_devices, fingerprint, format_public_key, parse_public_key, recipients
from cloister.enclave import local, optee
from cloister.errors import EnclaveUnavailable, UserError

KEY = bytes(range(32))
TEXT = base64.b64encode(KEY).decode()


@given(key=st.binary(min_size=32, max_size=32), words=st.lists(st.text("abc@-1", min_size=1), max_size=3))
def test_text_reads_back(key, words):
    text = format_public_key(key, " ".join(words))
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert parse_public_key(text) == key


def test_text_is_one_line_of_kind_key_and_comment():
    assert format_public_key(KEY, "my board") == f"cloister-x25519 {TEXT} my board\n"


def test_fingerprint_is_the_start_of_the_hash():
    assert fingerprint(KEY) == hashlib.sha256(KEY).hexdigest()[:16]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "cloister-x25519",
        f"ssh-ed25519 {TEXT}",
        f"cloister-x25519 {TEXT}\ncloister-x25519 {TEXT}",
        "cloister-x25519 not_base64!",
        f"cloister-x25519 {TEXT[:-4]}",
        f"cloister-x25519 {TEXT}AAAA",
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(UserError, match=r"key\.pub"):
        parse_public_key(text, "key.pub")


@pytest.mark.parametrize("comment", ["two\nlines", " spaces", "a  b", "carriage\rreturn"])
def test_comment_of_several_lines_is_refused(comment):
    with pytest.raises(UserError):
        format_public_key(KEY, comment)


def test_key_of_another_length_is_refused():
    with pytest.raises(UserError, match="32 bytes"):
        format_public_key(b"short")


def test_recipients_are_key_files_each_once(tmp_path):
    first, second = tmp_path / "a.pub", tmp_path / "b.pub"
    first.write_text(format_public_key(KEY, "a"))
    second.write_text(format_public_key(KEY[::-1]))
    assert recipients([str(first), str(second), str(first)]) == [KEY, KEY[::-1]]


@pytest.mark.parametrize("check", [recipients, check_devices])
@pytest.mark.parametrize("name", ["lcoal", "/nowhere/key.pub"])
def test_unknown_recipient_says_what_is_known(name, check):
    with pytest.raises(UserError) as error:
        check([name])
    assert name in str(error.value)
    assert "known are local, " in error.value.hint


def test_enclave_that_is_not_there_is_found_by_the_check(monkeypatch, tmp_path):
    monkeypatch.setattr(optee, "DEVICE", tmp_path / "tee0")
    with pytest.raises(EnclaveUnavailable, match="no OP-TEE on this machine"):
        check_devices(["optee"])


def test_devices_are_checked_without_a_local_enclave(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "local_info", None)
    key = tmp_path / "a.pub"
    key.write_text(format_public_key(KEY))
    check_devices(["local", str(key)])


def test_file_that_is_no_key_is_refused(tmp_path):
    binary, long = tmp_path / "binary", tmp_path / "long"
    binary.write_bytes(b"\xff\xfe")
    long.write_bytes(b"a" * 5000)
    for path in (binary, long, tmp_path):
        with pytest.raises(UserError, match=str(path)):
            recipients([str(path)])
