"""A bundle is read back as it was written; anything else is a named error."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.bundle import file as bundle_file
from cloister.bundle import sealing
from cloister.bundle.file import read_bundle, write_bundle
from cloister.bundle.manifest import Manifest
from cloister.errors import BundleError, IntegrityError, OutputExists, UserError
from tests.bundle.sample import (
    describe_parts,
    make_sample,
    new_device,
    sections,
    with_digest,
    with_sections,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sample():
    return make_sample(budget_bytes=9000)


@pytest.fixture(scope="module")
def device():
    return X25519PrivateKey.generate()


@pytest.fixture(scope="module")
def written(sample, device, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    return sample.write(folder / "m.cloister", [new_device(), device.public_key().public_bytes_raw()])


@pytest.fixture(scope="module")
def data(written):
    return written.read_bytes()


def read_changed(tmp_path_factory, data: bytes):
    path = tmp_path_factory.getbasetemp() / "changed.cloister"
    path.write_bytes(data)
    return read_bundle(path)


# --- Reading back --------------------------------------------------------------------------------------------------


def test_bundle_reads_back_as_it_was_written(sample, written, data):
    with read_bundle(written) as bundle:
        assert bundle.manifest == sample.manifest
        assert [bundle.part(i) for i in range(2)] == sample.parts
        assert len(bundle.recipients) == 2
        assert bundle.n_bytes == len(data)
        found = sections(data)
        for name, section in (("program", bundle.sealed_program), ("slices", bundle.slices)):
            assert (section.offset, section.offset + section.n_bytes) == found[name]


#: Suites with their numbers and ciphers, by the format's page.
SUITES = {"AES-256-GCM": (1, AESGCM), "ChaCha20-Poly1305": (2, ChaCha20Poly1305)}


@pytest.mark.parametrize("suite", SUITES)
def test_sealed_sections_open_with_the_devices_key_as_the_format_says(suite, device, tmp_path):
    sample = make_sample(budget_bytes=9000, suite=suite)
    number, cipher = SUITES[suite]
    path = sample.write(tmp_path / "m", [new_device(), device.public_key().public_bytes_raw()])
    with read_bundle(path) as bundle:
        assert bundle.manifest.suite == suite
        data = path.read_bytes()
        key = cipher(open_key(bundle, bundle.recipients[1], device, number))
        program = open_program(bundle, key, data)
        assert program == sample.program.data
        assert open_slices(bundle, key, program, data) == [s.data for s in sample.program.slices]
        with pytest.raises(InvalidTag):
            open_key(bundle, bundle.recipients[1], device, 3 - number)


def open_key(bundle, recipient, device, suite):
    hpke = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    info = b"cloister-bundle-1" + bundle.bundle_id + struct.pack("<I", suite)
    return hpke.decrypt(recipient.enc + recipient.sealed_key, device, info=info)


def test_chacha_is_the_published_one():
    """Our side seals with the cipher of the RFC; the enclave's side is tested against the same numbers in C."""
    vector = json.loads((ROOT / "vectors" / "rfc8439.json").read_text())
    numbers = {name: bytes.fromhex(text) for name, text in vector.items() if name != "made_by"}
    cipher = sealing._CIPHERS["ChaCha20-Poly1305"](numbers["key"])
    sealed = cipher.encrypt(numbers["nonce"], numbers["plaintext"], numbers["aad"])
    assert sealed == numbers["ciphertext"] + numbers["tag"]


@pytest.mark.parametrize("suite", ["AES-128-GCM", "", None, 2])
def test_unknown_suite_is_refused(suite, data, tmp_path_factory):
    start, end = sections(data)["manifest"]
    manifest = json.loads(data[start:end]) | {"suite": suite}
    with pytest.raises(BundleError, match="suite"):
        read_changed(tmp_path_factory, with_sections(data, manifest=json.dumps(manifest).encode()))


def open_program(bundle, key, data):
    section = bundle.sealed_program
    sealed = data[section.offset : section.offset + section.n_bytes]
    aad = b"cloister-program-1" + bundle.bundle_id + bundle.manifest_sha256
    return key.decrypt(b"\xff" * 4 + bytes(8), sealed, aad)


def open_slices(bundle, key, program, data):
    import hashlib

    sizes = bundle_file.sealed_slice_bytes(bundle.manifest)
    n_slices, at, opened = len(sizes), bundle.slices.offset, []
    for index, size in enumerate(sizes):
        aad = b"cloister-slice-1" + bundle.bundle_id + hashlib.sha256(program).digest()
        aad += struct.pack("<II", index, n_slices)
        opened.append(key.decrypt(struct.pack("<I8x", index), data[at : at + size], aad))
        at += size
    return opened


def test_budget_cuts_the_sample_into_several_slices(sample):
    assert len(sample.program.slices) > 2
    assert any(s.resident for s in sample.program.slices)
    assert not all(s.resident for s in sample.program.slices)


def test_two_bundles_of_one_model_share_no_sealed_bytes(sample, written, device, tmp_path):
    other = sample.write(tmp_path / "again", [device.public_key().public_bytes_raw()]).read_bytes()
    data = written.read_bytes()
    for name in ("program", "slices"):
        start, end = sections(data)[name]
        other_start, _ = sections(other)[name]
        assert data[start : start + 64] != other[other_start : other_start + 64]
        assert end - start == sections(other)[name][1] - other_start


def test_inside_weights_are_not_in_the_file(sample, data):
    for weights in sample.inside_weights:
        words = (weights[i : i + 8] for i in range(0, len(weights) - 8, 8))
        assert all(word not in data for word in words if word.count(0) < 5)  # packed weights are padded with zeros


def test_bundle_with_nothing_inside_has_no_recipients(tmp_path):
    with read_bundle(make_sample(inside=False).write(tmp_path / "open", [])) as bundle:
        assert (bundle.recipients, bundle.sealed_program.n_bytes, bundle.slices.n_bytes) == ((), 0, 0)


# --- Damage --------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(draw=st.data())
def test_any_changed_byte_is_named_damage(data, tmp_path_factory, draw):
    start, end = draw.draw(st.sampled_from(sorted(set(sections(data).values()))))
    position = draw.draw(st.integers(start, end - 1))
    changed = bytearray(data)
    changed[position] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(BundleError) as error:
        read_changed(tmp_path_factory, bytes(changed))
    assert error.value.exit_code == 3


def test_every_changed_header_byte_is_refused_even_with_a_right_digest(data, tmp_path_factory):
    for position in [*range(16), *range(32, 64)]:  # the bundle id is for the enclave to check
        changed = bytearray(data)
        changed[position] ^= 0x11
        with pytest.raises(IntegrityError):
            read_changed(tmp_path_factory, with_digest(changed))


def test_every_cut_is_refused(data, tmp_path_factory):
    borders = [end + d for _, end in sections(data).values() for d in (-1, 0, 1)]
    lengths = {*range(0, len(data), 97), *borders, 63, 64, 65, 95, 96, 97, 0, 1}
    for length in sorted(length for length in lengths if length < len(data)):
        with pytest.raises(BundleError):
            read_changed(tmp_path_factory, data[:length])


def test_appended_bytes_are_refused(data, tmp_path_factory):
    for extra in (b"\0", bytes(32), data):
        with pytest.raises(BundleError):
            read_changed(tmp_path_factory, data + extra)
        with pytest.raises(BundleError, match="are between"):
            read_changed(tmp_path_factory, with_digest(data + extra))


@settings(max_examples=100, deadline=None)
@given(noise=st.binary(max_size=300))
def test_noise_is_refused(noise, tmp_path_factory):
    for data in (noise, b"CLOISTER\1\0\0\0" + noise):
        with pytest.raises(BundleError):
            read_changed(tmp_path_factory, data)


@pytest.mark.parametrize("field", range(4))
@pytest.mark.parametrize("value", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_impossible_lengths_are_refused(data, field, value, tmp_path_factory):
    changed = bytearray(data)
    changed[32 + 8 * field : 40 + 8 * field] = struct.pack("<Q", value)
    with pytest.raises(BundleError):
        read_changed(tmp_path_factory, with_digest(changed))


def test_another_version_says_who_made_it(data, tmp_path_factory):
    changed = bytearray(data)
    changed[8] = 2
    with pytest.raises(BundleError, match=r"expected bundle format 1.*made by cloister 0\.1\.0.*format 2"):
        read_changed(tmp_path_factory, with_digest(changed))


def test_another_manifest_version_says_who_made_it(data, tmp_path_factory):
    with pytest.raises(BundleError, match=r"made by cloister 0\.1\.0"):
        read_changed(tmp_path_factory, with_manifest(data, format=2))


# --- Manifests that lie --------------------------------------------------------------------------------------------


def manifest_of(data: bytes) -> dict:
    start, end = sections(data)["manifest"]
    return json.loads(data[start:end])


def with_manifest(data: bytes, **changed) -> bytes:
    return with_sections(data, manifest=json.dumps(manifest_of(data) | changed).encode())


def test_changed_manifest_that_is_consistent_is_left_to_the_enclave(data, tmp_path_factory):
    read_changed(tmp_path_factory, with_manifest(data, model="another")).close()


def replace_at(value, path, new):
    if not path:
        return new
    head, *rest = path
    if isinstance(value, dict):
        return value | {head: replace_at(value[head], rest, new)}
    return [replace_at(item, rest, new) if i == head else item for i, item in enumerate(value)]


LIES = {
    "unknown input": (("input",), "y", "input `y`"),
    "int8 output": (("output",), "stem", "output `stem`"),
    "unknown output": (("output",), "y", "output"),
    "step reads the unknown": (("steps", 0, "inputs"), ["y"], "reads `y`"),
    "step reads what comes later": (("steps", 0, "inputs"), ["scores"], "reads `scores`"),
    "step makes the unknown": (("steps", 1, "outputs"), ["y"], "no known tensor"),
    "step makes what is there": (("steps", 1, "outputs"), ["stem"], "there already"),
    "no outputs": (("steps", 1, "outputs"), [], "no outputs"),
    "gap in stages": (("steps", 1, "index"), 1, "stage once"),
    "negative stage": (("steps", 1, "index"), -1, "stage once"),
    "unknown world": (("steps", 1, "world"), "elsewhere", "schema"),
    "torch without part": (("steps", 0, "world"), "torch", "torch"),
    "nothing inside": (("steps", 1, "world"), "outside", "outside` stage once"),
    "twice the same tensor": (("tensors", 1, "name"), "x", "one tensor `x`"),
    "empty shape": (("tensors", 1, "shape"), [8, 0, 6], "impossible shape"),
    "negative shape": (("tensors", 1, "shape"), [8, -6, -6], "impossible shape"),
    "gigantic shape": (("tensors", 1, "shape"), [2**20, 2**20, 1], "impossible shape"),
    "zero scale": (("tensors", 1, "scale"), 0.0, "impossible scale"),
    "zero point": (("tensors", 1, "zero_point"), 128, "zero point"),
    "moved part": (("parts", 1, "offset"), 0, "expected part 1"),
    "overlapping parts": (("parts", 0, "n_bytes"), 16, "expected part 1"),
    "negative part": (("parts", 0, "n_bytes"), -1, "expected part"),
    "two programs": (("parts", 1, "kind"), "program", "constants"),
    "another hash": (("parts", 0, "sha256"), "00" * 32, r"outside part 0 \(program\)"),
    "no slices": (("slices",), [], "sealed slices"),
    "bad slice": (("slices", 0, 2), 0, "impossible range"),
    "plan says outside": (("plan", "layers", 1, "inside"), False, "leaves `hidden` outside"),
    "no lane": (("plan", "lanes"), 0, "1 to 64 lanes"),
    "too many lanes": (("plan", "lanes"), 65, "1 to 64 lanes"),
    "other bytes in a slice": (("slices", 0, 3), 32, "expected sealed slices of"),
    "unknown field": (("more",), 1, "schema"),
    "wrong type": (("model",), 1, "schema"),
}


@pytest.mark.parametrize("lie", LIES)
def test_inconsistent_manifest_is_refused(lie, data, tmp_path_factory):
    path, value, says = LIES[lie]
    manifest = manifest_of(data)
    if path == ("more",):
        manifest["more"] = value
    else:
        manifest = replace_at(manifest, path, value)
    with pytest.raises(BundleError, match=says):
        read_changed(tmp_path_factory, with_sections(data, manifest=json.dumps(manifest).encode()))


@pytest.mark.parametrize("text", [b"", b"{}", b"[" * 100_000, b"\xff\xfe", b"null", b'{"format": 1', b"NaN"])
def test_manifest_that_is_no_manifest_is_refused(text, data, tmp_path_factory):
    with pytest.raises(BundleError, match="schema"):
        read_changed(tmp_path_factory, with_sections(data, manifest=text))


@pytest.mark.parametrize("missing", ["program", "recipients", "slices"])
def test_missing_sealed_section_is_refused(missing, data, tmp_path_factory):
    with pytest.raises(BundleError):
        read_changed(tmp_path_factory, with_sections(data, **{missing: b""}))


def test_changed_outside_part_is_refused(data, tmp_path_factory):
    start, end = sections(data)["outside"]
    part = bytearray(data[start:end])
    part[100] ^= 1
    with pytest.raises(BundleError, match="outside part 0"):
        read_changed(tmp_path_factory, with_sections(data, outside=bytes(part)))


# --- Paths ---------------------------------------------------------------------------------------------------------


def test_missing_file_is_the_users(tmp_path):
    with pytest.raises(UserError, match="cannot be read") as error:
        read_bundle(tmp_path / "none.cloister")
    assert error.value.exit_code == 2


def test_folder_is_no_bundle(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_bundle(tmp_path)


def test_existing_file_is_kept_without_force(sample, tmp_path):
    path = tmp_path / "m.cloister"
    path.write_text("precious")
    with pytest.raises(OutputExists):
        sample.write(path, [new_device()])
    assert path.read_text() == "precious"
    sample.write(path, [new_device()], force=True)
    read_bundle(path).close()
    assert os.listdir(tmp_path) == ["m.cloister"]


def test_failed_write_leaves_the_old_file_and_nothing_else(sample, tmp_path, monkeypatch):
    path = tmp_path / "m.cloister"
    path.write_text("precious")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        sample.write(path, [new_device()], force=True)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["m.cloister"]


def test_contradictory_bundle_is_not_written(sample, tmp_path):
    wrong = msgspec.structs.replace(sample.manifest, parts=describe_parts([("program", b"x"), ("constants", b"")]))
    with pytest.raises(BundleError):
        write_bundle(
            tmp_path / "m",
            manifest=wrong,
            program=sample.program.data,
            slices=[s.data for s in sample.program.slices],
            outside=sample.parts,
            recipients=[new_device()],
        )
    assert os.listdir(tmp_path) == []


def test_folder_that_is_not_there_is_the_users(sample, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        sample.write(tmp_path / "none" / "m.cloister", [new_device()])


@pytest.mark.parametrize("key", [bytes(32), b"short", b"\1" + bytes(31)])
def test_unusable_public_key_is_the_users(sample, key, tmp_path):
    with pytest.raises(UserError, match="public key"):
        sample.write(tmp_path / "m", [key])
    assert os.listdir(tmp_path) == []


def test_manifest_survives_json(sample):
    assert msgspec.json.decode(msgspec.json.encode(sample.manifest), type=Manifest) == sample.manifest


def test_sample_weights_are_not_trivial(sample):
    assert all(len(np.unique(np.frombuffer(w, np.int8))) > 50 for w in sample.inside_weights)
