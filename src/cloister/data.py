"""Data sets: images and labels from disk, and the cut into members and non-members.

Images stay as stored (mostly uint8) and become float32 in [-1, 1] batch by batch, by a fixed formula: no
statistics of the training data have to travel with a bundle. Nothing here unpickles or downloads.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from cloister.errors import DataError

__all__ = ["Dataset", "Part", "load_dataset", "split"]

Part = Literal["train", "test"]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]
_Array = npt.NDArray[Any]

#: A larger label is taken for a damaged file: every class costs an output of the model.
_MAX_CLASSES = 65_536
_CHUNK_BYTES = 1 << 20
_IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_HINT = "give `digits`, an .npz file, a folder of idx files, or a folder with train/<class>/ and test/<class>/"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Images with labels, cut into a training and a test part.

    Attributes:
        name: for messages and reports; not a path.
        x_train: (N, C, H, W), uint8 in [0, 2 * half_range] or float32 in [-1, 1].
        y_train: (N,) int64 in [0, n_classes).
        x_test: (M, C, H, W), dtype and range as `x_train`.
        y_test: (M,) int64 in [0, n_classes).
        n_classes: number of classes K, at least 2.
        half_range: stored value v of a uint8 image means v / half_range - 1.

    Raises:
        DataError: arrays that contradict this; every contradiction is listed.
    """

    name: str
    x_train: _Array
    y_train: Labels
    x_test: _Array
    y_test: Labels
    n_classes: int
    half_range: float = 127.5

    def __post_init__(self) -> None:
        problems = [
            *_part_problems("train", self.x_train, self.y_train, self.n_classes),
            *_part_problems("test", self.x_test, self.y_test, self.n_classes),
        ]
        if not 2 <= self.n_classes <= _MAX_CLASSES:
            problems.append(f"expected a number of classes in [2, {_MAX_CLASSES}], but got {self.n_classes}")
        if self.x_train.shape[1:] != self.x_test.shape[1:] or self.x_train.dtype != self.x_test.dtype:
            problems.append(
                f"expected train and test images alike, but got {self.x_train.dtype} "
                f"{self.x_train.shape[1:]} and {self.x_test.dtype} {self.x_test.shape[1:]}"
            )
        if problems:
            raise DataError(f"data set `{self.name}`: " + "; ".join(problems))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.x_train.shape
        return channels, height, width

    @property
    def n_train(self) -> int:
        """Number of training images."""
        return len(self.x_train)

    def images(self, indices: npt.ArrayLike | slice = slice(None), part: Part = "train") -> Floats:
        """Convert images to what models take.

        Args:
            indices: integers into the part, or a slice; all images if omitted.
            part: `train` or `test`.

        Returns:
            (N, C, H, W) float32 in [-1, 1], contiguous, a copy.
        """
        stored = self.x_train if part == "train" else self.x_test
        chosen = stored[indices if isinstance(indices, slice) else np.asarray(indices)]
        images = chosen.astype(np.float32)  # (N, C, H, W)
        if stored.dtype == np.uint8:
            images /= np.float32(self.half_range)
            images -= np.float32(1)
        return np.ascontiguousarray(images)

    def labels(self, indices: npt.ArrayLike | slice = slice(None), part: Part = "train") -> Labels:
        """Labels (N,) int64 in [0, n_classes) of the images at the same indices."""
        stored = self.y_train if part == "train" else self.y_test
        return stored[indices if isinstance(indices, slice) else np.asarray(indices)]

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the training part, in hexadecimal: it tells whether a cut can be redone on this data."""
        head = f"{self.x_train.dtype.str} {self.x_train.shape} {self.n_classes} {self.half_range}"
        digest = hashlib.sha256(head.encode())
        digest.update(np.ascontiguousarray(self.x_train).data)
        digest.update(np.ascontiguousarray(self.y_train).data)
        return digest.hexdigest()


def split(n: int, *, n_members: int, seed: int) -> tuple[Indices, Indices]:
    """Cut a training set into members, on which a victim is trained, and non-members, the rest.

    The cut does not look at labels. The same arguments give the same cut.

    Args:
        n: size of the training set.
        n_members: number of members, in [1, n - 1].
        seed: at least 0.

    Returns:
        Indices of members and of non-members, each ascending, disjoint, together all of [0, n).

    Raises:
        DataError: `n_members` or `seed` out of range.
    """
    if not 1 <= n_members < n:
        raise DataError(f"expected a number of members in [1, {n - 1}], but got {n_members}")
    if seed < 0:
        raise DataError(f"expected a seed of at least 0, but got {seed}")
    order = np.random.default_rng(seed).permutation(n).astype(np.int64)
    return np.sort(order[:n_members]), np.sort(order[n_members:])


def load_dataset(spec: str) -> Dataset:
    """Read a data set.

    Args:
        spec: one of
            `digits`: 1797 handwritten digits (1, 8, 8) that come with scikit-learn, 360 of them for testing;
            a folder of idx files as MNIST and Fashion-MNIST are published, also in its subfolder `raw`, plain
            or `.gz`;
            an `.npz` file with `x_train`, `y_train`, `x_test`, `y_test`: images (N, H, W), (N, H, W, C) or
            (N, C, H, W) with 1 or 3 channels, uint8, or float in [-1, 1];
            a folder of images `train/<class>/*` and `test/<class>/*` (or `val/`), all of one size; classes in
            alphabetical order; grey only if every image is.

    Returns:
        The data set, named after the file or folder.

    Raises:
        DataError: nothing there, or a damaged, inconsistent or empty file: it says which.

    Example:
        >>> load_dataset("digits").input_shape
        (1, 8, 8)
    """
    if spec == "digits":
        return _load_digits()
    path = Path(spec).expanduser()
    try:
        return _load_path(path)
    except (OSError, MemoryError) as error:
        raise DataError(f"cannot read data set `{path}`: {error or 'out of memory'}", _HINT) from error


def _load_path(path: Path) -> Dataset:
    if path.is_file() and path.suffix == ".npz":
        return _load_npz(path)
    if path.is_dir():
        for folder in (path, path / "raw"):
            if _find_idx(folder, "train-images", 3) is not None:
                return _load_idx(folder, _folder_name(path))
        if (path / "train").is_dir():
            return _load_folder(path)
        raise DataError(f"expected idx files or a folder `train` in `{path}`, but found neither", _HINT)
    what = "a file of another kind" if path.exists() else "nothing"
    raise DataError(f"expected a data set at `{path}`, but found {what}", _HINT)


def _folder_name(path: Path) -> str:
    full = path.resolve()
    return full.parent.name if full.name == "raw" else full.name


def _part_problems(part: str, images: _Array, labels: Labels, n_classes: int) -> list[str]:
    problems = []
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        problems.append(
            f"expected {part} images (N, C, H, W) of uint8 or float32, but got {images.dtype} {images.shape}"
        )
    if images.size == 0:
        problems.append(f"expected {part} images, but there are none")
    elif images.dtype == np.float32 and not _within_one(images):
        problems.append(f"expected {part} images of floats in [-1, 1], but some are outside or not finite")
    if labels.shape != images.shape[:1] or labels.dtype != np.int64:
        problems.append(f"expected {len(images)} {part} labels of int64, but got {labels.dtype} {labels.shape}")
    elif labels.size and not (labels.min() >= 0 and labels.max() < n_classes):
        problems.append(
            f"expected {part} labels in [0, {n_classes - 1}], but they lie in [{labels.min()}, {labels.max()}]"
        )
    return problems


def _within_one(images: Floats) -> bool:
    # A comparison with NaN is false, so this refuses NaN too.
    return bool(images.min() >= -1 and images.max() <= 1)


def _count_classes(labels: Labels) -> int:
    return int(labels.max(initial=0)) + 1


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.asarray(bunch.images, dtype=np.uint8)[:, None]  # (1797, 1, 8, 8), values 0 to 16
    labels = np.asarray(bunch.target, dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:360], order[360:]
    return Dataset(
        name="digits",
        x_train=images[train],
        y_train=labels[train],
        x_test=images[test],
        y_test=labels[test],
        n_classes=10,
        half_range=8.0,
    )


# --- idx: the format of MNIST ---


def _find_idx(folder: Path, stem: str, rank: int) -> Path | None:
    for separator in "-.":
        for suffix in ("", ".gz"):
            path = folder / f"{stem}{separator}idx{rank}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def _load_idx(folder: Path, name: str) -> Dataset:
    arrays = {}
    for stem, rank in [("train-images", 3), ("train-labels", 1), ("t10k-images", 3), ("t10k-labels", 1)]:
        path = _find_idx(folder, stem, rank)
        if path is None:
            raise DataError(f"expected `{stem}-idx{rank}-ubyte` (or .gz) in `{folder}`, but it is not there")
        arrays[stem] = _read_idx(path, rank)
    y_train = arrays["train-labels"].astype(np.int64)
    return Dataset(
        name=name,
        x_train=arrays["train-images"][:, None],
        y_train=y_train,
        x_test=arrays["t10k-images"][:, None],
        y_test=arrays["t10k-labels"].astype(np.int64),
        n_classes=_count_classes(y_train),
    )


def _read_idx(path: Path, rank: int) -> npt.NDArray[np.uint8]:
    """Read an idx file of unsigned bytes: 0, 0, 8, rank, then big-endian uint32 sizes, then the values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * rank)
            shape = _idx_shape(head, path, rank)
            values = _read_at_most(file, math.prod(shape) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"cannot decompress `{path}`: {error}") from error
    if len(values) != math.prod(shape):
        came = "more" if len(values) > math.prod(shape) else str(len(values))
        raise DataError(f"expected {math.prod(shape)} values of shape {shape} in `{path}`, but got {came}")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _idx_shape(head: bytes, path: Path, rank: int) -> tuple[int, ...]:
    magic = bytes([0, 0, 8, rank])
    if head[:4] != magic:
        raise DataError(
            f"expected an idx file of bytes, rank {rank} (magic {magic.hex()}), in `{path}`, "
            f"but got magic {head[:4].hex() or 'nothing'}"
        )
    if len(head) != 4 + 4 * rank:
        raise DataError(f"expected an idx header of {4 + 4 * rank} bytes in `{path}`, but got {len(head)}")
    return tuple(int(size) for size in np.frombuffer(head, dtype=">u4", offset=4))


def _read_at_most(file: BinaryIO | gzip.GzipFile, n_bytes: int) -> bytearray:
    """Read in pieces, so that a header's lie about the size allocates nothing."""
    values = bytearray()
    while len(values) < n_bytes:
        piece = file.read(min(_CHUNK_BYTES, n_bytes - len(values)))
        if not piece:
            break
        values += piece
    return values


# --- npz ---


def _load_npz(path: Path) -> Dataset:
    arrays = _read_npz(path)
    y_train = _npz_labels(arrays["y_train"], "y_train", path)
    return Dataset(
        name=path.stem,
        x_train=_npz_images(arrays.pop("x_train"), "x_train", path),
        y_train=y_train,
        x_test=_npz_images(arrays.pop("x_test"), "x_test", path),
        y_test=_npz_labels(arrays["y_test"], "y_test", path),
        n_classes=_count_classes(y_train),
    )


def _read_npz(path: Path) -> dict[str, _Array]:
    wanted = ("x_train", "y_train", "x_test", "y_test")
    try:
        # Not numpy.load: it takes other kinds of files too, and leaves a damaged one open.
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            missing = [name for name in wanted if name not in archive.files]
            if missing:
                raise DataError(
                    f"expected arrays {', '.join(wanted)} in `{path}`, but got {', '.join(archive.files) or 'none'}"
                )
            arrays = {name: archive[name] for name in wanted}
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"expected an .npz file of plain arrays, but `{path}` cannot be read: {error}",
            "object arrays are refused: save arrays of numbers with numpy.savez",
        ) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy hands out a member that is no array as bytes
            raise DataError(f"expected `{name}` in `{path}` to be an array, but it is not")
    return arrays


def _npz_labels(labels: _Array, name: str, path: Path) -> Labels:
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or not np.issubdtype(flat.dtype, np.integer):
        raise DataError(f"expected `{name}` in `{path}` to be integers (N,), but got {labels.dtype} {labels.shape}")
    if flat.size and int(flat.max()) >= _MAX_CLASSES:
        raise DataError(f"expected `{name}` in `{path}` below {_MAX_CLASSES}, but got {flat.max()}")
    return flat.astype(np.int64)


def _npz_images(images: _Array, name: str, path: Path) -> _Array:
    where = f"`{name}` in `{path}`"
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"expected {where} to be uint8 or float, but got {images.dtype}")
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32, copy=False)
        if images.size and not _within_one(images):
            raise DataError(
                f"expected floats in [-1, 1] for {where}, but some are outside or not finite",
                "save images as uint8 in [0, 255], or scale them",
            )
    return np.ascontiguousarray(_to_nchw(images, where))


def _to_nchw(images: _Array, where: str) -> _Array:
    if images.ndim == 3:
        return images[:, None]
    channels = (1, 3)
    first = images.ndim == 4 and images.shape[1] in channels
    last = images.ndim == 4 and images.shape[-1] in channels
    if first == last:
        raise DataError(
            f"expected {where} as (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, but got {images.shape}"
        )
    return images if first else images.transpose(0, 3, 1, 2)


# --- a folder of images ---


def _load_folder(path: Path) -> Dataset:
    test = next((path / part for part in ("test", "val") if (path / part).is_dir()), None)
    if test is None:
        raise DataError(f"expected a folder `test` or `val` beside `{path / 'train'}`, but found neither")
    classes = sorted(entry.name for entry in (path / "train").iterdir() if entry.is_dir())
    train_files, y_train = _list_images(path / "train", classes)
    test_files, y_test = _list_images(test, classes)
    images = _read_images(train_files + test_files)
    return Dataset(
        name=_folder_name(path),
        x_train=images[: len(train_files)],
        y_train=y_train,
        x_test=images[len(train_files) :],
        y_test=y_test,
        n_classes=len(classes),
    )


def _list_images(folder: Path, classes: list[str]) -> tuple[list[Path], Labels]:
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    unknown = [name for name in found if name not in set(classes)]
    if unknown:
        raise DataError(
            f"expected only classes of the training part in `{folder}`, but got `{unknown[0]}`"
            + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = _image_files(folder / name) if name in found else []
        files += inside
        labels += [label] * len(inside)
    if not files:
        raise DataError(f"expected images in `{folder}/<class>/`, but found none")
    return files, np.array(labels, dtype=np.int64)


def _image_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file())


def _read_images(files: list[Path]) -> npt.NDArray[np.uint8]:
    """Read equally large images into one array, grey if every one is grey."""
    first, grey = _read_image(files[0], None)
    images = np.empty((len(files), *first.shape), dtype=np.uint8)  # (N, 3, H, W)
    for image, file in zip(images, files, strict=True):
        image[...], is_grey = _read_image(file, (files[0], first.shape))
        grey = grey and is_grey
    return np.ascontiguousarray(images[:, :1]) if grey else images


def _read_image(file: Path, wanted: tuple[Path, tuple[int, ...]] | None) -> tuple[npt.NDArray[np.uint8], bool]:
    """Read one image as (3, H, W), and whether it is grey; its size is looked at before it is decoded."""
    from PIL import Image  # not on every device: other data needs none

    try:
        with Image.open(file) as image:
            if wanted is not None and (image.height, image.width) != wanted[1][1:]:
                raise DataError(
                    f"expected all images as large as `{wanted[0]}` ({wanted[1][1]}x{wanted[1][2]}), "
                    f"but `{file}` is {image.height}x{image.width} (height x width)",
                    "resize the images to one size first",
                )
            grey = image.mode in ("1", "L")
            pixels = np.asarray(image.convert("RGB"))  # (H, W, 3)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read image `{file}`: {error}") from error
    return pixels.transpose(2, 0, 1), grey
