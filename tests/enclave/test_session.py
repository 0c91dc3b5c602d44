"""A session gives the oracle's bits for any batch, refuses bad input, and survives its enclave."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.bundle.file import Section, write_bundle
from cloister.bundle.keys import recipients
from cloister.bundle.manifest import SliceEntry, Step
from cloister.compile.program import Stage, build_inside, build_outside, constants
from cloister.enclave import session as session_module
from cloister.enclave.inside import Windows
from cloister.enclave.session import load
from cloister.errors import (
    BundleError,
    EnclaveCrashed,
    EnclaveError,
    EnclaveOutOfMemory,
    InputError,
    IntegrityError,
    NotForThisDevice,
    ProtocolError,
    UserError,
)
from cloister.planning.plan import BoardPlan
from tests import oracle
from tests.bundle.sample import (
    INPUT_SHAPE,
    N_CLASSES,
    describe_parts,
    images,
    make_graph,
    make_manifest,
    make_sample,
    new_device,
)
from tests.enclave import fake

BUDGETS = [None, 9000, 8000]
#: Of the sample's three values for an image, each at a multiple of 64.
IMAGE_BYTES = 448 + 320 + 64


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A bundle for each budget, and one with nothing inside."""
    folder = tmp_path_factory.mktemp("bundles")
    local = recipients(["local"])
    made = {b: make_sample(budget_bytes=b).write(folder / f"{b}.cloister", local) for b in BUDGETS}
    chacha = make_sample(budget_bytes=9000, suite="ChaCha20-Poly1305").write(folder / "chacha.cloister", local)
    open_ = make_sample(inside=False).write(folder / "open.cloister", [])
    return made | {"open": open_, "ChaCha20-Poly1305": chacha}


def expected(x, seed=0):
    return oracle.run(make_graph(seed), x)["scores"]


# --- Results -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [*BUDGETS, "open", "ChaCha20-Poly1305"])
@pytest.mark.parametrize("window_bytes", [None, 1, 600, 10**9])
def test_any_slicing_and_window_gives_the_oracles_bits(budget, window_bytes, bundles):
    x = images(5)
    with load(bundles[budget], window_bytes=window_bytes) as session:
        for _ in range(2):
            y = session.run(x)
            assert y.dtype == np.float32
            np.testing.assert_array_equal(y, expected(x))


@settings(max_examples=25, deadline=None)
@given(n_images=st.integers(1, 9), piece_images=st.integers(1, 4))
def test_batch_in_pieces_gives_the_same(n_images, piece_images, bundles):
    x = images(n_images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "_PIECE_BYTES", piece_images * IMAGE_BYTES)
        with load(bundles[9000]) as session:
            y = session.run(x)
            assert session.stats.calls == -(-n_images // piece_images)
    assert y.shape == (n_images, N_CLASSES)
    np.testing.assert_array_equal(y, expected(x))


@settings(max_examples=25, deadline=None)
@given(n_images=st.integers(1, 9), lanes=st.integers(1, 10), budget=st.sampled_from([8000, 9000]))
def test_lanes_give_the_same_and_open_streamed_slices_once_for_a_group(n_images, lanes, budget, lanes_bundle):
    x = images(n_images)
    with load(lanes_bundle(lanes, budget)) as session:
        streamed = [piece.n_bytes for piece in session.bundle.manifest.slices if not piece.resident]
        resident = [piece.n_bytes for piece in session.bundle.manifest.slices if piece.resident]
        np.testing.assert_array_equal(session.run(x), expected(x))
        stats = session.stats
        assert stats.inside_peak_bytes <= stats.inside_bytes == session.bundle.manifest.plan.inside_bytes
        groups = -(-n_images // lanes)
        assert len(streamed) > 1
        assert stats.slices_opened == len(resident) + groups * len(streamed)
        assert stats.slice_bytes_opened == sum(resident) + groups * sum(streamed)


@pytest.fixture(scope="module")
def lanes_bundle(tmp_path_factory):
    """Gives the bundle for a number of lanes and a budget."""
    folder = tmp_path_factory.mktemp("lanes")

    @functools.cache
    def make(lanes, budget):
        sample = make_sample(budget_bytes=budget, lanes=lanes)
        return sample.write(folder / f"{lanes}-{budget}.cloister", recipients(["local"]))

    return make


@pytest.mark.parametrize("places", [1, 2, 3, 4, 8, 11])
@pytest.mark.parametrize("window_bytes", [1, 600, None])
def test_slices_that_are_opened_ahead_give_the_same(places, window_bytes, tmp_path):
    path = make_sample(budget_bytes=8000, lanes=2, places=places).write(tmp_path / "m", recipients(["local"]))
    x = images(7)
    with load(path, window_bytes=window_bytes) as session:
        streamed = [piece for piece in session.bundle.manifest.slices if not piece.resident]
        for _ in range(20):
            np.testing.assert_array_equal(session.run(x), expected(x))
        stats = session.stats
        assert stats.slices_opened == len(session.bundle.manifest.slices) - len(streamed) + 20 * 4 * len(streamed)
        assert stats.inside_peak_bytes <= stats.inside_bytes


@pytest.mark.parametrize("places", [1, 2, 4])
def test_change_of_any_slice_that_streams_is_told(places, tmp_path):
    path = make_sample(budget_bytes=8000, places=places).write(tmp_path / "m", recipients(["local"]))
    with load(path) as session:
        offset, slices = session.bundle.slices.offset, session.bundle.manifest.slices
        at = [offset + sum(piece.n_bytes + 16 for piece in slices[:i]) for i in range(len(slices))]
        good = path.read_bytes()
        for i in (i for i, piece in enumerate(slices) if not piece.resident):
            with path.open("r+b") as file:  # the enclave has the file in its memory
                file.seek(at[i])
                file.write(bytes([good[at[i]] ^ 1]))
            with pytest.raises(IntegrityError):
                session.run(images(1))
            path.write_bytes(good)
            np.testing.assert_array_equal(session.run(images(1)), expected(images(1)))


@pytest.mark.parametrize("window_bytes", [1, 600, None])
def test_windows_in_the_middle_of_a_group_give_the_same(window_bytes, lanes_bundle):
    x = images(7)
    with load(lanes_bundle(3, 8000), window_bytes=window_bytes) as session:
        np.testing.assert_array_equal(session.run(x), expected(x))


@pytest.mark.parametrize(("piece_images", "calls"), [(1, 10), (2, 5), (3, 4), (4, 4), (5, 4), (6, 2), (11, 2)])
def test_pieces_are_whole_groups(piece_images, calls, lanes_bundle, monkeypatch):
    monkeypatch.setattr(session_module, "_PIECE_BYTES", piece_images * IMAGE_BYTES)
    with load(lanes_bundle(3, 8000)) as session:
        np.testing.assert_array_equal(session.run(images(10)), expected(images(10)))
        assert session.stats.calls == calls


def test_image_larger_than_a_piece_travels_alone(bundles, monkeypatch):
    monkeypatch.setattr(session_module, "_PIECE_BYTES", 1)
    with load(bundles[None]) as session:
        np.testing.assert_array_equal(session.run(images(3)), expected(images(3)))
        assert session.stats.calls == 3


def test_empty_batch_gives_an_empty_result(bundles):
    with load(bundles[None]) as session:
        y = session.run(np.empty((0, *INPUT_SHAPE), np.float32))
        assert (y.shape, y.dtype) == ((0, N_CLASSES), np.float32)
        assert session.stats.calls == 0


def test_strided_input_is_read_as_it_looks(bundles):
    x = np.moveaxis(images(4), 1, -1).copy()
    with load(bundles[None]) as session:
        channels_first = np.moveaxis(x, -1, 1)
        np.testing.assert_array_equal(session.run(channels_first), expected(channels_first))
        np.testing.assert_array_equal(session.run(channels_first[::-2]), expected(channels_first[::-2]))


def test_two_sessions_at_once_do_not_disturb_each_other(bundles):
    with load(bundles[None]) as first, load(bundles[8000]) as second:
        for _ in range(3):
            np.testing.assert_array_equal(first.run(images(2)), second.run(images(2)))


# --- Input ---------------------------------------------------------------------------------------------------------

GOOD = images(2)
NOT_A_NUMBER = GOOD.copy()
NOT_A_NUMBER[1, 2, 3, 4] = np.nan
BAD_INPUTS = {
    "float64": (GOOD.astype(np.float64), r"expected float32 .*got float64"),
    "int": (np.zeros((2, *INPUT_SHAPE), np.int64), r"got int64"),
    "channels last": (GOOD.transpose(0, 2, 3, 1), r"shape \(N, 3, 6, 6\), but got float32 of shape \(2, 6, 6, 3\)"),
    "no batch": (GOOD[0], r"got float32 of shape \(3, 6, 6\)"),
    "scalar": (np.zeros((), np.float32), r"shape \(\)"),
    "nan": (NOT_A_NUMBER, r"got nan at \(1, 2, 3, 4\)"),
    "infinite": (np.full_like(GOOD, -np.inf), r"got -inf at \(0, 0, 0, 0\), the first of 216"),
    "list": (GOOD.tolist(), "got list"),
    "tensor": (torch.from_numpy(GOOD), "got Tensor"),
    "big-endian": (GOOD.astype(">f4"), "got >f4"),
}


@pytest.mark.parametrize(("x", "says"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input_is_refused(x, says, bundles):
    with load(bundles[None]) as session:
        with pytest.raises(InputError, match=says) as error:
            session.run(x)
        assert error.value.exit_code == 2
        np.testing.assert_array_equal(session.run(GOOD), expected(GOOD))


def test_unknown_enclave_is_the_users(bundles):
    with pytest.raises(UserError, match="`sgx`"):
        load(bundles[None], enclave="sgx")


def test_bundle_for_another_device_is_refused(tmp_path):
    path = make_sample().write(tmp_path / "m", [new_device()])
    with pytest.raises(NotForThisDevice, match="for this device"):
        load(path)


# --- Statistics ----------------------------------------------------------------------------------------------------


def test_stats_count_what_crossed(bundles):
    with load(bundles[9000]) as session:
        session.run(images(4))
        session.run(images(3))
        stats = session.stats
        assert (stats.images, stats.calls) == (7, 2)
        assert (stats.bytes_in, stats.bytes_out) == (7 * 288, 7 * 4 * N_CLASSES)
        assert stats.budget_bytes == 9000
        assert 0 < stats.inside_peak_bytes <= stats.inside_bytes <= 9000
        assert stats.inside_bytes == session.bundle.manifest.plan.inside_bytes
        assert [s.world for s in stats.stages] == ["outside", "inside"]
        assert [s.calls for s in stats.stages] == [2, 2]
        assert stats.stages[1].layers == ("hidden", "head")
        assert all(s.seconds > 0 for s in stats.stages)
        assert stats.slices_opened > 7
        assert stats.seconds_per_opening * stats.slices_opened == pytest.approx(stats.seconds_opening)
        assert stats.seconds_computing > 0
        assert stats.isolation == "process isolation, not hardware"
    assert session.stats == stats
    assert json.loads(msgspec.json.encode(stats))["enclave"] == "local"


def without_steps(stats):
    """A step that failed may or may not have been counted."""
    return msgspec.structs.replace(stats, stages=())


@pytest.mark.parametrize("noticed", [True, False])
def test_stats_outlive_a_crash(noticed, bundles):
    with load(bundles[9000]) as session:
        session.run(images(4))
        before = session.stats
        os.kill(session.enclave_process_id, signal.SIGKILL)
        if noticed:
            with pytest.raises(EnclaveCrashed):
                session.run(images(1))
        after = session.stats
        assert before.inside_peak_bytes > 0
        assert without_steps(after) == without_steps(before)
    assert without_steps(session.stats) == without_steps(before)


def test_stats_after_a_crash_that_nobody_asked_before_have_the_sessions_own_counts(bundles):
    with load(bundles[9000]) as session:
        session.run(images(4))
        os.kill(session.enclave_process_id, signal.SIGKILL)
        stats = session.stats
    assert (stats.images, stats.calls, stats.bytes_in) == (4, 1, 4 * 288)
    assert stats.inside_bytes > 0
    assert stats.isolation == "process isolation, not hardware"


@pytest.mark.parametrize("window_bytes", [None, 1])
def test_slices_that_stay_are_opened_once_and_at_load(window_bytes, bundles):
    with load(bundles[None], window_bytes=window_bytes) as session:
        loaded = session.stats
        assert (loaded.slices_opened, loaded.calls, loaded.images) == (2, 0, 0)
        assert loaded.slice_bytes_opened == sum(s.n_bytes for s in session.bundle.manifest.slices)
        assert loaded.seconds_opening > 0
        for _ in range(3):
            session.run(images(2))
        assert session.stats.slices_opened == 2
        assert session.stats.calls == 3


def test_slices_that_stream_are_not_opened_at_load(bundles):
    with load(bundles[9000]) as session:
        resident = [s.n_bytes for s in session.bundle.manifest.slices if s.resident]
        assert 0 < len(resident) < len(session.bundle.manifest.slices)
        assert (session.stats.slices_opened, session.stats.slice_bytes_opened) == (len(resident), sum(resident))


@settings(max_examples=200, deadline=None)
@given(
    slices=st.lists(st.tuples(st.one_of(st.integers(1, 50), st.integers(1, 5000)), st.booleans()), max_size=12),
    window_bytes=st.one_of(st.none(), st.integers(1, 200)),
    room_bytes=st.sampled_from([4096, 8192, sys.maxsize]),
)
def test_windows_at_load_hold_each_slice_that_stays_once(slices, window_bytes, room_bytes):
    entries = tuple(SliceEntry("layer", 0, 1, n_bytes, stays) for n_bytes, stays in slices)
    sizes = [n_bytes + 16 for n_bytes, _ in slices]
    bundle = SimpleNamespace(
        slices=Section(1000, sum(sizes)), manifest=msgspec.structs.replace(make_sample().manifest, slices=entries)
    )
    shown = []
    for first, count, window in Windows(bundle, window_bytes).over(room_bytes, resident=True):
        assert window.offset == 1000 + sum(sizes[:first])
        assert window.size == sum(sizes[first : first + count])
        assert count == 1 or window.size <= min(window_bytes or room_bytes, room_bytes)
        shown += range(first, first + count)
    assert shown == [index for index, (_, stays) in enumerate(slices) if stays]


def test_nothing_inside_needs_no_enclave(bundles):
    with load(bundles["open"]) as session:
        session.run(images(1))
        stats = session.stats
        assert session.info is None
        assert session.enclave_process_id is None
        assert (stats.enclave, stats.isolation, stats.inside_bytes, stats.calls) == (None, None, 0, 0)


# --- The enclave's end ---------------------------------------------------------------------------------------------


def test_killed_enclave_is_a_crash_and_the_next_load_works(bundles):
    with load(bundles[None]) as session:
        session.run(images(1))
        os.kill(session.enclave_process_id, signal.SIGKILL)
        with pytest.raises(EnclaveCrashed, match="SIGKILL"):
            session.run(images(1))
        with pytest.raises(EnclaveError):
            session.run(images(1))
    with load(bundles[None]) as session:
        np.testing.assert_array_equal(session.run(images(1)), expected(images(1)))


def test_enclave_killed_in_the_middle_of_a_call_is_a_crash(monkeypatch, tmp_path):
    fake.install(monkeypatch, tmp_path, "answers[3] = lambda: os.kill(os.getpid(), 9)", key=fake_key())
    with load(make_sample().write(tmp_path / "m", [fake_key()])) as session, pytest.raises(EnclaveCrashed):
        session.run(images(1))


@pytest.mark.parametrize(
    ("behaviour", "board", "fix"),
    [
        ("answers[1] = lambda: info(heap=8000, board=b'rpi3')", "rpi3", "--board rpi3"),
        ("answers[1] = lambda: info(heap=8000)", "", "--budget below 8000"),
        ("answers[2] = lambda: respond(result=0xFFFF000C)", "", "--budget"),
    ],
)
def test_inside_that_the_enclave_has_no_room_for_is_refused_with_both_numbers(
    behaviour, board, fix, monkeypatch, tmp_path
):
    """By what the enclave says of its heap, without loading; or by its answer, where others use that heap, too."""
    loads = "" if "answers[2]" in behaviour else "\nanswers[2] = lambda: os.kill(os.getpid(), 9)"
    fake.install(monkeypatch, tmp_path, behaviour + loads, key=fake_key())
    sample = make_sample()
    heap = 8000 if "heap" in behaviour else 65536
    with pytest.raises(
        EnclaveOutOfMemory, match=f"needs {sample.program.inside_bytes} bytes, .* {heap} bytes"
    ) as caught:
        load(sample.write(tmp_path / "m", [fake_key()]))
    assert fix in caught.value.hint


def test_boards_of_bundle_and_enclave_are_both_told(monkeypatch, tmp_path):
    fake.install(monkeypatch, tmp_path, "answers[1] = lambda: info(board=b'qemu-virt')", key=fake_key())
    sample = make_sample()
    board = BoardPlan(name="rpi3", title="Raspberry", demonstration=("no secure RAM: …",))
    plan = msgspec.structs.replace(sample.manifest.plan, board=board)
    planned = dataclasses.replace(sample, manifest=msgspec.structs.replace(sample.manifest, plan=plan))
    with load(planned.write(tmp_path / "m", [fake_key()])) as session:
        assert (session.stats.board, session.stats.planned_for) == ("qemu-virt", board)


def test_closed_session_refuses_to_run(bundles):
    with load(bundles[None]) as session:
        pass
    session.close()
    with pytest.raises(EnclaveError, match="closed"):
        session.run(images(1))


def fake_key():
    """What the fake enclave says is its key; any point that can be sealed to."""
    return bytes.fromhex("09" + "00" * 31)


HOSTILE_AT_LOAD = {
    "refuses": ("respond(result=0xFFFF0006)", ProtocolError),
    "calls a slice changed": ("respond(result=0xFFFF3071)", BundleError),
    "dies": ("os.kill(os.getpid(), 9)", EnclaveCrashed),
}


@pytest.mark.parametrize(("behaviour", "error"), HOSTILE_AT_LOAD.values(), ids=HOSTILE_AT_LOAD)
def test_enclave_that_does_not_open_ahead_does_not_load(behaviour, error, monkeypatch, tmp_path):
    fake.install(monkeypatch, tmp_path, f"answers[5] = lambda: {behaviour}", key=fake_key())
    with pytest.raises(error, match="`open`"):
        load(make_sample().write(tmp_path / "m", [fake_key()]))


HOSTILE = {
    "asks for the same slice for ever": "answers[3] = lambda: run(state=1, needed=1)",
    "asks for a slice that is not there": "answers[3] = lambda: run(state=1, needed=2)",
    "has done more images than there are": "answers[3] = lambda: run(state=1, needed=1, done=99)",
    "unknown state": "answers[3] = lambda: run(state=2)",
    "refuses": "answers[3] = lambda: respond(result=0xFFFF0006)",
}


@pytest.mark.parametrize("behaviour", HOSTILE.values(), ids=HOSTILE)
def test_enclave_that_gets_nowhere_is_a_protocol_error(behaviour, monkeypatch, tmp_path):
    fake.install(monkeypatch, tmp_path, behaviour, key=fake_key())
    with load(make_sample().write(tmp_path / "m", [fake_key()])) as session, pytest.raises(ProtocolError):
        session.run(images(2))


@pytest.mark.parametrize("loaded", ["n_stages=2", "n_slices=3"])
def test_program_that_is_not_the_manifests_is_refused(loaded, monkeypatch, tmp_path):
    fake.install(monkeypatch, tmp_path, f"answers[2] = lambda: load({loaded})", key=fake_key())
    with pytest.raises(BundleError, match="expected 1 stages and 2 slices"):
        load(make_sample().write(tmp_path / "m", [fake_key()]))


def test_outside_stage_that_is_not_the_manifests_is_refused(tmp_path):
    sample = make_sample(inside=False)
    tensors = [t if t.name != "stem" else msgspec.structs.replace(t, shape=(8, 6, 7)) for t in sample.manifest.tensors]
    wrong = dataclasses.replace(sample, manifest=msgspec.structs.replace(sample.manifest, tensors=tuple(tensors)))
    with pytest.raises(BundleError, match="outside stage 0"):
        load(wrong.write(tmp_path / "m", []))


# --- Steps in torch ------------------------------------------------------------------------------------------------


class Shift(torch.nn.Module):
    """Something of its own for each channel, row and column, so that a wrong layout shows."""

    def forward(self, x):
        weight = torch.arange(x[0].numel(), dtype=torch.float32).reshape(1, *x.shape[1:])
        return (x * 0.5 + torch.sin(weight),)


def shift(x):
    weight = torch.arange(x[0].size, dtype=torch.float32).reshape(1, *x.shape[1:])
    return (torch.from_numpy(x) * 0.5 + torch.sin(weight)).numpy()


def export(module, shape, *, dynamic):
    example = torch.zeros(2 if dynamic else 1, *shape)
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


def write_with_torch(path, part):
    """The sample with a torch step in front: pixels → x → outside → inside."""
    graph = make_graph(0)
    first = dataclasses.replace(graph.tensors["x"], name="pixels")
    graph = dataclasses.replace(graph, tensors={"pixels": first} | graph.tensors, input="pixels")
    outer = Stage(ops=graph.ops[:2], inputs=("x",), outputs=("stem",))
    inner = Stage(ops=graph.ops[2:], inputs=("stem",), outputs=("scores",))
    outside, program = build_outside(graph, [outer]), build_inside(graph, [inner], budget_bytes=None, slicing="auto")
    parts = [("program", outside.data), ("constants", constants(outside)), ("torch", part)]
    steps = (
        Step(world="torch", index=0, inputs=("pixels",), outputs=("x",), layers=()),
        Step(world="outside", index=0, inputs=("x",), outputs=("stem",), layers=("stem",)),
        Step(world="inside", index=0, inputs=("stem",), outputs=("scores",), layers=("hidden", "head")),
    )
    write_bundle(
        path,
        manifest=make_manifest(graph, steps, program, parts),
        program=program.data,
        slices=[s.data for s in program.slices],
        outside=[data for _, data in parts],
        recipients=recipients(["local"]),
    )
    return path


@pytest.mark.parametrize("dynamic", [True, False])
def test_torch_step_runs_any_batch(dynamic, tmp_path):
    path = write_with_torch(tmp_path / "m", export(Shift(), INPUT_SHAPE, dynamic=dynamic))
    with load(path) as session:
        for n_images in (1, 2, 5):
            x = images(n_images)
            np.testing.assert_array_equal(session.run(x), expected(shift(x)))


def test_torch_step_that_makes_something_else_is_refused(tmp_path):
    class Flat(torch.nn.Module):
        def forward(self, x):
            return (x.flatten(1),)

    with (
        load(write_with_torch(tmp_path / "m", export(Flat(), INPUT_SHAPE, dynamic=True))) as session,
        pytest.raises(BundleError, match="from torch stage 0"),
    ):
        session.run(images(1))


def test_parts_are_described_in_order():
    assert [p.offset for p in describe_parts([("program", b"ab"), ("torch", b"c")])] == [0, 2]


# --- What is imported ----------------------------------------------------------------------------------------------

HEAVY = ("torch", "sklearn", "scipy", "cryptography", "torchao", "rich", "click", "matplotlib", "PIL")


@pytest.mark.parametrize("budget", [None, "open"])
def test_loading_and_running_imports_nothing_heavy(budget, bundles):
    script = (
        "import sys, numpy\n"
        "import cloister\n"
        "with cloister.load(sys.argv[1]) as session:\n"
        f"    session.run(numpy.zeros((2, *{INPUT_SHAPE}), numpy.float32))\n"
        "    session.stats\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", script, str(bundles[budget])]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "[]\n"
