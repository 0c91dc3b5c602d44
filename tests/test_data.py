"""Readers give what was written, and refuse everything else with a message that names the file."""

import gzip
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cloister.data import Dataset, load_dataset, split
from cloister.errors import DataError

REAL = os.environ.get("CLOISTER_DATA")
needs_real = pytest.mark.skipif(REAL is None, reason="CLOISTER_DATA names no folder of data sets")


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def arrays(n=6, n_test=4, shape=(9, 8), n_classes=3):
    rng = np.random.default_rng(0)
    return {
        "train-images": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        "train-labels": (np.arange(n) % n_classes).astype(np.uint8),
        "t10k-images": rng.integers(0, 256, (n_test, *shape), dtype=np.uint8),
        "t10k-labels": (np.arange(n_test) % n_classes).astype(np.uint8),
    }


def write_idx(folder, content, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in content.items():
        data = array if isinstance(array, bytes) else idx(array)
        rank = 3 if "images" in stem else 1
        path = folder / f"{stem}-idx{rank}-ubyte{suffix}"
        path.write_bytes(gzip.compress(data) if suffix else data)


def npz_arrays(x_train=None, **changes):
    x = np.zeros((6, 8, 8, 3), dtype=np.uint8) if x_train is None else x_train
    return {"x_train": x, "y_train": np.arange(6) % 2, "x_test": x[:2], "y_test": np.arange(2)} | changes


def write_npz(folder, **content):
    path = folder / "set.npz"
    np.savez(path, **content)
    return str(path)


def write_images(root, *, mode="RGB", parts=("train", "test"), classes=("b", "a"), size=(8, 9), suffix="png"):
    for part in parts:
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(2):
                image = Image.new(mode, size, color=100 * label + i if mode == "L" else (100 * label, i, 7))
                image.save(root / part / name / f"{i}.{suffix}")
    return str(root)


# --- what is read ---


def test_digits_have_the_fixed_cut_and_range():
    data = load_dataset("digits")
    assert (data.input_shape, data.n_classes, data.n_train, len(data.x_test)) == ((1, 8, 8), 10, 1437, 360)
    images = data.images()
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert data.sha256 == load_dataset("digits").sha256
    assert np.array_equal(np.unique(data.labels(part="test")), np.arange(10))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", [".", "raw"])
def test_idx_round_trip(tmp_path, suffix, below):
    content = arrays()
    write_idx(tmp_path / "tiny" / below, content, suffix)
    data = load_dataset(str(tmp_path / "tiny"))
    assert (data.name, data.input_shape, data.n_classes) == ("tiny", (1, 9, 8), 3)
    assert np.array_equal(data.x_train[:, 0], content["train-images"])
    assert np.array_equal(data.y_test, content["t10k-labels"])
    assert data.y_test.dtype == np.int64


@settings(max_examples=25, deadline=None)
@given(
    x=hnp.arrays(np.uint8, st.tuples(st.integers(2, 5), *[st.sampled_from([2, 4, 7])] * 2, st.sampled_from([1, 3]))),
    is_first=st.booleans(),
)
def test_npz_round_trip_in_either_layout(tmp_path_factory, x, is_first):
    stored = x.transpose(0, 3, 1, 2) if is_first else x
    content = {"x_train": stored, "y_train": np.arange(len(x)), "x_test": stored[:1], "y_test": np.zeros((1, 1), int)}
    data = load_dataset(write_npz(tmp_path_factory.mktemp("npz"), **content))
    assert np.array_equal(data.x_train, x.transpose(0, 3, 1, 2))
    assert np.allclose(data.images([0]), data.x_train[:1] / 127.5 - 1, atol=1e-6)
    assert np.array_equal(data.labels(), np.arange(len(x)))


def test_npz_of_floats_is_taken_as_it_is(tmp_path):
    x = np.linspace(-1, 1, 6 * 64).reshape(6, 8, 8)
    data = load_dataset(write_npz(tmp_path, **npz_arrays(x)))
    assert np.array_equal(data.images(), x[:, None].astype(np.float32))


@pytest.mark.parametrize(("mode", "n_channels"), [("L", 1), ("RGB", 3)])
@pytest.mark.parametrize("test", ["test", "val"])
def test_image_folder_sorts_classes(tmp_path, mode, n_channels, test):
    data = load_dataset(write_images(tmp_path / "pets", mode=mode, parts=("train", test), suffix="PNG"))
    assert (data.name, data.input_shape, data.n_classes) == ("pets", (n_channels, 9, 8), 2)
    assert data.y_train.tolist() == [0, 0, 1, 1]
    assert data.x_train[:, 0, 0, 0].tolist() == ([100, 101, 0, 1] if mode == "L" else [100, 100, 0, 0])


def test_image_folder_with_one_coloured_image_is_coloured(tmp_path):
    spec = write_images(tmp_path / "pets", mode="L")
    Image.new("RGB", (8, 9), (1, 2, 3)).save(tmp_path / "pets/test/b/1.png")
    data = load_dataset(spec)
    assert data.input_shape == (3, 9, 8)
    assert data.x_test[-1, :, 0, 0].tolist() == [1, 2, 3]
    assert data.x_train[0, :, 0, 0].tolist() == [100, 100, 100]


def test_images_convert_slices_lists_and_arrays_alike():
    data = load_dataset("digits")
    expected = data.images(slice(3, 6), "test")
    assert np.array_equal(expected, data.images([3, 4, 5], "test"))
    assert np.array_equal(expected, data.images(np.array([3, 4, 5]), "test"))
    assert expected.flags.c_contiguous


def test_sha256_changes_with_any_label():
    data = load_dataset("digits")
    labels = data.y_train.copy()
    labels[-1] = (labels[-1] + 1) % 10
    other = Dataset(
        name="digits", x_train=data.x_train, y_train=labels, x_test=data.x_test, y_test=data.y_test,
        n_classes=10, half_range=8.0,
    )  # fmt: skip
    assert other.sha256 != data.sha256


# --- what is refused ---


@pytest.mark.parametrize("spec", ["nowhere", "nowhere.npz"])
def test_nothing_there_is_an_error_with_the_kinds(tmp_path, spec):
    with pytest.raises(DataError, match="found nothing") as caught:
        load_dataset(str(tmp_path / spec))
    assert "digits" in caught.value.hint


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="found neither"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got magic nothing"),
        (b"\0\0\x0d\x03" + bytes(12), "magic 00000803.*got magic 00000d03"),
        (b"\0\0\x08\x01" + bytes(12), "got magic 00000801"),
        (b"\0\0\x08\x03\0\0", "header of 16 bytes"),
        (idx(arrays()["train-images"])[:-1], "expected 432 values.*got 431"),
        (idx(arrays()["train-images"]) + b"x", "expected 432 values.*got more"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"abc", "got 3"),
        (idx(np.zeros((0, 9, 8), np.uint8)), "there are none"),
        (idx(np.zeros((5, 9, 8), np.uint8)), "expected 5 train labels"),
        (idx(np.zeros((6, 7, 8), np.uint8)), "train and test images alike"),
    ],
)
def test_damaged_idx_is_refused(tmp_path, suffix, data, message):
    write_idx(tmp_path, arrays() | {"train-images": data}, suffix)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(str(tmp_path))
    assert tmp_path.name in str(caught.value)


def test_idx_with_a_test_label_out_of_range_is_refused(tmp_path):
    write_idx(tmp_path, arrays() | {"t10k-labels": np.array([0, 1, 9, 2], np.uint8)})
    with pytest.raises(DataError, match=r"test labels in \[0, 2\], but they lie in \[0, 9\]"):
        load_dataset(str(tmp_path))


def test_idx_with_a_missing_file_is_refused(tmp_path):
    write_idx(tmp_path, arrays())
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(idx(arrays()["train-images"]))[:-12]])
def test_idx_with_damaged_compression_is_refused(tmp_path, content):
    write_idx(tmp_path, arrays(), ".gz")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.array([{"a": 1}] * 6, dtype=object)}, "cannot be read"),
        ({"x_train": np.zeros((6, 8, 8, 3), np.int32)}, "uint8 or float"),
        ({"x_train": np.zeros((6, 8, 8, 2), np.uint8)}, "1 or 3 channels"),
        ({"x_train": np.zeros((6, 3, 8, 3), np.uint8)}, "1 or 3 channels"),
        ({"x_train": np.zeros(6, np.uint8)}, "1 or 3 channels"),
        ({"x_train": np.full((6, 8, 8, 3), 255.0)}, r"floats in \[-1, 1\]"),
        ({"x_train": np.full((6, 8, 8, 3), np.nan)}, r"floats in \[-1, 1\]"),
        ({"x_train": np.zeros((0, 8, 8, 3), np.uint8)}, "there are none"),
        ({"x_test": np.zeros((2, 8, 8, 3))}, "train and test images alike"),
        ({"y_train": np.arange(5)}, "expected 6 train labels"),
        ({"y_train": np.arange(6.0)}, "to be integers"),
        ({"y_train": -np.arange(6)}, "train labels in"),
        ({"y_train": np.full(6, 1 << 40)}, "below 65536"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(2, int)}, "number of classes"),
        ({"y_test": np.array([0, 5])}, "test labels in"),
    ],
)
def test_bad_npz_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load_dataset(write_npz(tmp_path, **npz_arrays(**changes)))


def test_npz_without_an_array_is_refused(tmp_path):
    with pytest.raises(DataError, match="but got x, y"):
        load_dataset(write_npz(tmp_path, x=np.zeros(1), y=np.zeros(1)))


def test_npz_with_a_member_that_is_no_array_is_refused(tmp_path):
    spec = write_npz(tmp_path, **{k: v for k, v in npz_arrays().items() if k != "y_test"})
    with zipfile.ZipFile(spec, "a") as archive:
        archive.writestr("y_test", b"text")
    with pytest.raises(DataError, match="`y_test`"):
        load_dataset(spec)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"set\.npz"):
        load_dataset(str(tmp_path / "set.npz"))


def test_npz_that_claims_a_huge_array_is_refused(tmp_path):
    spec = write_npz(tmp_path, **{k: v for k, v in npz_arrays().items() if k != "y_test"})
    with zipfile.ZipFile(spec, "a") as archive, archive.open("y_test.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**15,)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match=r"cannot read|cannot be read"):
        load_dataset(spec)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), at=st.integers(0, 2500), byte=st.integers(0, 255))
def test_changed_npz_is_read_or_refused_by_name(tmp_path_factory, cut, at, byte):
    path = Path(write_npz(tmp_path_factory.mktemp("fuzz"), **npz_arrays()))
    content = bytearray(path.read_bytes())
    content[at % len(content)] = byte
    path.write_bytes(content[: len(content) - cut])
    try:
        load_dataset(str(path))
    except DataError as error:
        assert "set" in str(error)  # noqa: PT017


def test_image_of_another_size_is_named(tmp_path):
    spec = write_images(tmp_path / "pets")
    Image.new("RGB", (8, 8)).save(tmp_path / "pets/train/b/0.png")
    with pytest.raises(DataError, match=r"a/0\.png.*9x8.*b/0\.png.*8x8") as caught:
        load_dataset(spec)
    assert "resize" in caught.value.hint


def test_damaged_image_is_named(tmp_path):
    spec = write_images(tmp_path / "pets")
    file = tmp_path / "pets/test/a/1.png"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError, match=r"test/a/1\.png"):
        load_dataset(spec)


def test_image_folder_needs_a_test_part_images_and_known_classes(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="`test` or `val`"):
        load_dataset(str(tmp_path))
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="found none"):
        load_dataset(str(tmp_path))
    write_images(tmp_path / "pets")
    (tmp_path / "pets/test/cat").mkdir()
    with pytest.raises(DataError, match="`cat`"):
        load_dataset(str(tmp_path / "pets"))


def test_dataset_of_other_arrays_is_refused():
    x = np.zeros((2, 8, 8), np.int16)
    with pytest.raises(DataError, match=r"uint8 or float32.*outside or not finite"):
        Dataset(
            name="d", x_train=x, y_train=np.arange(2), n_classes=2,
            x_test=np.full((2, 1, 8, 8), 2, np.float32), y_test=np.arange(2),
        )  # fmt: skip


# --- the cut ---


@given(n=st.integers(2, 300), data=st.data(), seed=st.integers(0, 2**63 - 1))
def test_split_is_a_seeded_partition(n, data, seed):
    n_members = data.draw(st.integers(1, n - 1))
    inside, outside = split(n, n_members=n_members, seed=seed)
    assert len(inside) == n_members
    assert np.array_equal(np.sort(np.concatenate([inside, outside])), np.arange(n))
    again, _ = split(n, n_members=n_members, seed=seed)
    assert np.array_equal(inside, again)


def test_split_is_the_same_on_every_version():
    # Checkpoints tell members by seed and count: another cut would call strangers members.
    inside, _ = split(20, n_members=8, seed=7)
    assert inside.tolist() == [3, 8, 10, 12, 13, 14, 15, 16]


def test_split_depends_on_the_seed():
    assert not np.array_equal(split(100, n_members=50, seed=0)[0], split(100, n_members=50, seed=1)[0])


@pytest.mark.parametrize(("n_members", "seed"), [(0, 0), (10, 0), (-1, 0), (5, -1)])
def test_split_refuses_bad_counts_and_seeds(n_members, seed):
    with pytest.raises(DataError):
        split(10, n_members=n_members, seed=seed)


# --- the published sets ---


@needs_real
@pytest.mark.parametrize(
    ("spec", "shape", "n_classes", "n_test"),
    [
        ("MNIST", (1, 28, 28), 10, 10_000),
        ("FashionMNIST", (1, 28, 28), 10, 10_000),
        ("cifar10.npz", (3, 32, 32), 10, 10_000),
        ("cifar100.npz", (3, 32, 32), 100, 10_000),
        ("tiny-imagenet-200", (3, 64, 64), 100, 5_000),
    ],
)
def test_published_sets_are_read(spec, shape, n_classes, n_test):
    data = load_dataset(str(Path(REAL) / spec))
    assert (data.input_shape, data.n_classes, len(data.x_test)) == (shape, n_classes, n_test)
    assert data.x_train.dtype == np.uint8
