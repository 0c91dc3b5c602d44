"""Whoever holds the file makes its digest right again; then the enclave must notice, and nothing comes out."""

from __future__ import annotations

import dataclasses
import json
import os
import struct

import numpy as np
import pytest

from cloister.bundle.file import read_bundle, sealed_slice_bytes
from cloister.bundle.keys import recipients
from cloister.enclave.session import load
from cloister.errors import BundleError, CloisterError, EnclaveOutOfMemory, IntegrityError, NotForThisDevice
from tests import oracle
from tests.bundle.sample import images, make_graph, make_sample, new_device, sections, with_digest, with_sections

X = images(3)
#: Two slices of `hidden` that stream and one of `head` that stays.
BUDGET_BYTES = 9000
BY_ENCLAVE = "the enclave refused"


@pytest.fixture(scope="module", params=["AES-256-GCM", "ChaCha20-Poly1305"])
def sample(request):
    return make_sample(budget_bytes=BUDGET_BYTES, suite=request.param)


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    return sample.write(tmp_path_factory.mktemp("hostile") / "m", recipients(["local"])).read_bytes()


@pytest.fixture(scope="module")
def twin(sample, tmp_path_factory):
    """The same model once more, for the same device."""
    return sample.write(tmp_path_factory.mktemp("twin") / "m", recipients(["local"])).read_bytes()


@pytest.fixture
def attack(tmp_path):
    """Loads and runs changed bytes; they must be refused with nothing left behind."""

    def run(changed: bytes, error: type[CloisterError] = IntegrityError, says: str | None = None):
        path = tmp_path / "changed.cloister"
        path.write_bytes(changed)
        with pytest.raises(error, match=says) as caught:
            run_and_look(path)
        assert caught.value.exit_code == 3
        with pytest.raises(ChildProcessError):  # no process is left, running or not
            os.waitpid(-1, os.WNOHANG)

    return run


def run_and_look(path):
    with load(path) as session:
        try:
            session.run(X)
        finally:
            assert not any(results_memory(session))


def results_memory(session) -> bytes:
    """Where the results of the inside step for `X` would be."""
    results = session._steps[len(X)].output
    assert np.shares_memory(results, session._inside.memory)
    return results.tobytes()


def cut(data: bytes, name: str) -> bytes:
    start, end = sections(data)[name]
    return data[start:end]


def sealed_slices(data: bytes, tmp_path) -> list[bytes]:
    path = tmp_path / "sizes"
    path.write_bytes(data)
    with read_bundle(path) as bundle:
        sizes = sealed_slice_bytes(bundle.manifest)
    ends = np.cumsum(sizes)
    section = cut(data, "slices")
    return [section[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def test_the_attacked_bundle_is_good(data, tmp_path):
    path = tmp_path / "m"
    for good in (data, with_digest(data), with_sections(data)):
        assert good == data
        path.write_bytes(good)
        with load(path) as session:
            np.testing.assert_array_equal(session.run(X), oracle.run(make_graph(0), X)["scores"])
            assert any(results_memory(session))


@pytest.mark.parametrize("section", ["header", "manifest", "recipients", "program", "slices", "outside"])
def test_changed_byte_is_refused_in_every_section(section, data, attack):
    start, end = sections(data)[section]
    rng = np.random.default_rng(0)
    positions = {start, start + 1, end - 1, *rng.integers(start, end, 25).tolist()}
    if section == "header":
        positions = set(range(16, 32)) | {12}  # the bundle's id; the rest is refused by the reader, see test_file
    for position in sorted(positions):
        changed = bytearray(data)
        changed[position] ^= 1 << int(rng.integers(8))
        attack(with_digest(changed))


def test_every_byte_of_the_recipients_entry_counts(data, attack):
    start, end = sections(data)["recipients"]
    for position in range(start, end, 5):
        changed = bytearray(data)
        changed[position] ^= 0x80  # also the bit that X25519 itself ignores
        attack(with_digest(changed), NotForThisDevice)


@pytest.mark.parametrize("section", ["program", "slices"])
def test_changed_ciphertext_and_tag_are_noticed_inside(section, data, attack):
    start, end = sections(data)[section]
    for position in (start, (start + end) // 2, end - 16, end - 1):
        changed = bytearray(data)
        changed[position] ^= 1
        attack(with_digest(changed), BundleError, BY_ENCLAVE)


def test_cut_at_every_border_is_refused(data, attack):
    for _, end in sections(data).values():
        for length in (end - 1, end, end + 1):
            changed = with_digest(data[:length] + bytes(32))
            if length < len(data) and changed != data:
                attack(changed, BundleError)


def test_moved_border_between_program_and_slices_is_refused(data, attack):
    program, slices = cut(data, "program"), cut(data, "slices")
    both = program + slices
    for shift in (-16, -1, 1, 16):
        border = len(program) + shift
        attack(with_sections(data, program=both[:border], slices=both[border:]), BundleError)


def test_cut_section_is_refused(data, attack):
    for name in ("program", "slices", "outside"):
        section = cut(data, name)
        for changed in (section[:-1], section[1:], section[:16], section + b"\0", section + section):
            attack(with_sections(data, **{name: changed}))


def test_changed_manifest_does_not_open(data, attack):
    manifest = json.loads(cut(data, "manifest"))
    for changed in (
        manifest | {"model": "another"},
        manifest | {"plan": manifest["plan"] | {"budget_bytes": 10**9}},
        manifest | {"plan": manifest["plan"] | {"budget_bytes": None, "inside_bytes": 0}},
    ):
        attack(with_sections(data, manifest=json.dumps(changed).encode()), BundleError, BY_ENCLAVE)
    spaced = json.dumps(manifest, indent=1).encode()  # the same document in other bytes
    attack(with_sections(data, manifest=spaced), BundleError, BY_ENCLAVE)


def test_manifest_with_another_suite_does_not_open(data, attack):
    manifest = json.loads(cut(data, "manifest"))
    other = {"AES-256-GCM": "ChaCha20-Poly1305", "ChaCha20-Poly1305": "AES-256-GCM"}[manifest["suite"]]
    changed = json.dumps(manifest | {"suite": other}).encode()
    attack(with_sections(data, manifest=changed), NotForThisDevice, BY_ENCLAVE)


def test_changed_slice_that_stays_is_told_at_load(data, tmp_path):
    path = tmp_path / "m"
    changed = bytearray(data)
    changed[sections(data)["slices"][1] - 1] ^= 1  # the last slice stays
    path.write_bytes(with_digest(changed))
    with pytest.raises(BundleError, match="refused `open`"):
        load(path)


def test_swapped_slices_do_not_open(data, attack, tmp_path):
    first, second, *rest = sealed_slices(data, tmp_path)
    assert len(first) == len(second)
    attack(with_sections(data, slices=b"".join([second, first, *rest])), BundleError, BY_ENCLAVE)
    attack(with_sections(data, slices=b"".join([first, first, *rest])), BundleError, BY_ENCLAVE)


def test_slice_of_another_bundle_does_not_open(data, twin, attack, tmp_path):
    own, foreign = sealed_slices(data, tmp_path), sealed_slices(twin, tmp_path)
    for index in range(len(own)):
        mixed = [*own[:index], foreign[index], *own[index + 1 :]]
        attack(with_sections(data, slices=b"".join(mixed)), BundleError, BY_ENCLAVE)


@pytest.mark.parametrize("name", ["recipients", "program", "slices"])
def test_section_of_another_bundle_does_not_open(name, data, twin, attack):
    attack(with_sections(data, **{name: cut(twin, name)}), IntegrityError, BY_ENCLAVE)


def test_inside_of_another_bundle_does_not_open_with_this_ones_outside(data, twin, attack):
    """All that is sealed and its id come from the twin; the manifest is one of this model, but a changed one."""
    manifest = json.loads(cut(data, "manifest")) | {"model": "another"}
    changed = with_sections(twin, manifest=json.dumps(manifest).encode(), outside=cut(data, "outside"))
    attack(changed, BundleError, BY_ENCLAVE)


def test_bundle_for_another_device_does_not_open_under_this_ones_name(sample, attack, tmp_path):
    foreign = sample.write(tmp_path / "foreign", [new_device()]).read_bytes()
    attack(foreign, NotForThisDevice, "for this device")
    (own,) = recipients(["local"])
    entry = own + cut(foreign, "recipients")[32:]
    attack(with_sections(foreign, recipients=entry), NotForThisDevice, BY_ENCLAVE)


def test_exchanged_outside_part_needs_a_manifest_that_does_not_open(data, attack, tmp_path):
    """Another outside with hashes that fit it: consistent for the reader, so the enclave must refuse."""
    other = make_sample(seed=5, budget_bytes=BUDGET_BYTES).write(tmp_path / "o", recipients(["local"])).read_bytes()
    manifest = json.loads(cut(data, "manifest")) | {"parts": json.loads(cut(other, "manifest"))["parts"]}
    changed = with_sections(data, manifest=json.dumps(manifest).encode(), outside=cut(other, "outside"))
    attack(changed, BundleError, BY_ENCLAVE)


def test_slice_changed_under_a_running_session_is_refused_and_mended(data, tmp_path):
    path = tmp_path / "m"
    path.write_bytes(data)
    start, _ = sections(data)["slices"]
    with load(path) as session, path.open("r+b", buffering=0) as file:
        good = session.run(X)
        os.pwrite(file.fileno(), bytes([data[start] ^ 1]), start)
        with pytest.raises(BundleError, match=BY_ENCLAVE):
            session.run(X)
        assert not any(results_memory(session))
        os.pwrite(file.fileno(), data[start : start + 1], start)
        np.testing.assert_array_equal(session.run(X), good)


def test_file_cut_under_a_running_session_is_an_error(data, tmp_path):
    path = tmp_path / "m"
    path.write_bytes(data)
    with load(path) as session:
        session.run(X)
        os.truncate(path, 10)
        with pytest.raises(CloisterError) as error:
            session.run(X)
        assert error.value.exit_code == 3


def test_program_that_breaks_its_own_budget_is_refused(sample, tmp_path):
    """The maker's mistake or lie: sealed rightly, but it needs more than its header allows."""
    program = bytearray(sample.program.data)
    struct.pack_into("<I", program, 4 * 11, sample.program.inside_bytes - 1)
    wrong = dataclasses.replace(sample.program, data=bytes(program))
    path = dataclasses.replace(sample, program=wrong).write(tmp_path / "m", recipients(["local"]))
    with pytest.raises(EnclaveOutOfMemory):
        load(path)


@pytest.mark.parametrize("word", range(10))
def test_malformed_program_is_refused_even_if_sealed_rightly(word, sample, tmp_path):
    program = bytearray(sample.program.data)
    (value,) = struct.unpack_from("<I", program, 4 * word)
    struct.pack_into("<I", program, 4 * word, value ^ 0x40000000)
    wrong = dataclasses.replace(sample.program, data=bytes(program))
    path = dataclasses.replace(sample, program=wrong).write(tmp_path / "m", recipients(["local"]))
    with pytest.raises((BundleError, EnclaveOutOfMemory)):
        load(path)
