"""The inside of a bundle, loaded into an enclave: windows of sealed slices, and runs until they are done."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from cloister.boards import SUITES
from cloister.bundle.file import Bundle, sealed_slice_bytes
from cloister.bundle.keys import fingerprint
from cloister.enclave import wire
from cloister.enclave.client import CONTROL_BYTES, Enclave
from cloister.enclave.steps import Place
from cloister.enclave.wire import EnclaveStats, Kind, Loaded, Parameter, Region, RunState
from cloister.errors import BundleError, EnclaveError, EnclaveOutOfMemory, NotForThisDevice, ProtocolError
from cloister.units import format_bytes

__all__ = ["Inside", "Windows"]

#: A trusted application serves one call at a time: so long a client makes others wait, unless a group is larger.
_CALL_IMAGES = 8
#: What is shared with a trusted application is counted in these.
_PAGE_BYTES = 4096


class Inside:
    """A bundle's inside program, loaded into an enclave, with the slices that stay open.

    Attributes:
        enclave: the session with it; closed with this.
        windows: the slices that it is shown.
        loaded: what the enclave says of the program.
        most_images: how many images may travel together.
        calls: crossings to run a stage.
        bytes_in: payload that went in.
        bytes_out: payload that came out.
    """

    def __init__(self, bundle: Bundle, enclave: Enclave, *, step_bytes: int, window_bytes: int | None) -> None:
        """Load the program.

        Args:
            bundle: an open bundle with something inside.
            enclave: a session that has the bundle as its store; closed if this fails.
            step_bytes: the most payload of one image in both directions.
            window_bytes: see `cloister.load`.

        Raises:
            IntegrityError, EnclaveError: see `cloister.load`.
        """
        self._bundle = bundle
        self.windows = Windows(bundle, window_bytes)
        self.calls = self.bytes_in = self.bytes_out = 0
        self._stats = EnclaveStats()
        self.enclave = enclave
        try:
            self.most_images = self._most_images(step_bytes)
            self.loaded = self._load()
            self._open_resident()
        except BaseException:
            self.enclave.close()
            raise

    def _load(self) -> Loaded:
        bundle, key = self._bundle, self.enclave.info.public_key
        recipient = next((r for r in bundle.recipients if r.public_key == key), None)
        if recipient is None:
            others = ", ".join(fingerprint(r.public_key) for r in bundle.recipients[:4])
            raise NotForThisDevice(
                f"{bundle.path}: expected a bundle for this device ({fingerprint(key)}), but it is for {others}",
                "protect the model for this device's public key",
            )
        suite = SUITES[bundle.manifest.suite]
        block = wire.pack_load(bundle.bundle_id, bundle.manifest_sha256, recipient.enc, recipient.sealed_key, suite)
        manifest = bundle.manifest
        if manifest.plan.inside_bytes > self.enclave.info.heap_bytes:
            raise self._too_large()
        try:
            loaded = self.enclave.load(block, (bundle.sealed_program.offset, bundle.sealed_program.n_bytes))
        except EnclaveOutOfMemory as error:
            raise self._too_large() from error
        expected = sum(step.world == "inside" for step in manifest.steps), len(manifest.slices)
        if (loaded.n_stages, loaded.n_slices) != expected:
            raise BundleError(
                f"{bundle.path}: expected {expected[0]} stages and {expected[1]} slices inside, "
                f"but got {loaded.n_stages} and {loaded.n_slices}"
            )
        return loaded

    def _too_large(self) -> EnclaveOutOfMemory:
        info, plan = self.enclave.info, self._bundle.manifest.plan
        board = f"--board {info.board}" if info.board else f"a --budget below {info.heap_bytes}"
        return EnclaveOutOfMemory(
            f"{self._bundle.path}: its inside needs {plan.inside_bytes} bytes, but the enclave's heap of "
            f"{info.heap_bytes} bytes has no room for it",
            f"protect the model with {board}, or end other sessions with this enclave",
        )

    def _open_resident(self) -> None:
        """Open all slices that stay: damage shows now, and the first run is as fast as any other."""
        for first, count, window in self.windows.over(self.room_bytes(), resident=True):
            self.enclave.open_slices(first, count, window)

    def _most_images(self, step_bytes: int) -> int:
        """How many images may travel together beside the largest slice; `step_bytes` is the payload of one."""
        if self.enclave.shared_bytes is None:
            return sys.maxsize
        largest_bytes = self.windows.largest_bytes
        # The run block has a page of its own; images and results waste less than one each.
        most = (self.enclave.shared_bytes - 3 * _PAGE_BYTES - _pages(largest_bytes)) // step_bytes
        if most < 1:
            raise EnclaveOutOfMemory(
                f"{self._bundle.path}: one call may take {format_bytes(self.enclave.shared_bytes)} along, "
                f"but the largest slice has {format_bytes(largest_bytes)} and an image {format_bytes(step_bytes)}",
                "protect the model for this --board: it cuts layers into smaller slices",
            )
        return min(most, max(_CALL_IMAGES, self._bundle.manifest.plan.lanes))

    @property
    def memory(self) -> npt.NDArray[np.uint8]:
        """The payload memory for `Steps`, behind the commands' own blocks."""
        return np.frombuffer(self.enclave.payload, np.uint8)[CONTROL_BYTES:]

    def prepare(self, stage: int, images: Place, results: Place) -> Callable[[], None]:
        """Make a call that runs a stage.

        Args:
            stage: index of the stage in the program.
            images: its input payload, in `memory`.
            results: where its output payload goes, there too.
        """
        given = Parameter(Kind.INPUT, Region.PAYLOAD, CONTROL_BYTES + images.offset, images.rows.size)
        taken = Parameter(Kind.OUTPUT, Region.PAYLOAD, CONTROL_BYTES + results.offset, results.rows.size)
        n_images = len(images.rows)
        # What stays is open since the load: showing it again would only copy it.
        begin = self._prepare_part(stage, n_images, self.windows.first_streamed, given, taken, resume=False)

        def run() -> None:
            state, before = begin(), (-1, -1)
            self.calls += 1
            # The enclave alone says which slices it needs; each answer that is not an error gets it further.
            while state:
                needed = state.needed_slice
                here = (state.images_done, needed)
                if needed >= self.loaded.n_slices or here == before or state.images_done > n_images:
                    raise ProtocolError(f"the enclave asks for slice {needed} and does not get any further")
                state, before = self._prepare_part(stage, n_images, needed, given, taken, resume=True)(), here
                self.calls += 1
            self.bytes_in += given.size
            self.bytes_out += taken.size

        return run

    def _prepare_part(
        self, stage: int, n_images: int, first: int, given: Parameter, taken: Parameter, *, resume: bool
    ) -> Callable[[], RunState | None]:
        """A call that shows the enclave slices from `first` on."""
        count, window = self.windows.at(first, self.room_bytes(given, taken))
        return self.enclave.prepare_run(
            wire.pack_run(stage, n_images, first, count, resume=resume), given, taken, window
        )

    def room_bytes(self, *others: Parameter) -> int:
        """What a call has left for slices beside its block and the others."""
        if self.enclave.shared_bytes is None:
            return sys.maxsize
        return self.enclave.shared_bytes - _PAGE_BYTES - sum(_pages(other.size) for other in others)

    def stats(self) -> EnclaveStats:
        """What the enclave measured; the last known if it does not tell any more."""
        with contextlib.suppress(EnclaveError):
            self._stats = self.enclave.stats()
        return self._stats

    def close(self) -> None:
        """End the enclave, keeping what it measured."""
        self.stats()
        self.enclave.close()


class Windows:
    """Which run of sealed slices the enclave is shown."""

    def __init__(self, bundle: Bundle, window_bytes: int | None) -> None:
        self._start = bundle.slices.offset
        self._sizes = sealed_slice_bytes(bundle.manifest)
        self._resident = [piece.resident for piece in bundle.manifest.slices]
        self._limit_bytes = bundle.slices.n_bytes if window_bytes is None else window_bytes

    @property
    def first_streamed(self) -> int:
        """Index of the first slice that streams; the number of slices if all stay."""
        return self._resident.index(False) if False in self._resident else len(self._resident)

    @property
    def largest_bytes(self) -> int:
        """Sealed bytes of the largest slice."""
        return max(self._sizes, default=0)

    def over(self, room_bytes: int, *, resident: bool) -> Iterator[tuple[int, int, Parameter]]:
        """(first slice, number of slices, where they lie) of windows over all slices that stay, or all that stream."""
        first = 0
        for stays, run in itertools.groupby(self._resident):
            end = first + len(list(run))
            while stays == resident and first < end:
                count, window = self.at(first, room_bytes, end)
                yield first, count, window
                first += count
            first = end

    def at(self, first: int, room_bytes: int, end: int | None = None) -> tuple[int, Parameter]:
        """(number of slices, where they lie) of the window from a slice on, before `end`, that the room holds."""
        count, size = 0, 0
        limit_bytes = min(self._limit_bytes, room_bytes // _PAGE_BYTES * _PAGE_BYTES)
        for n_bytes in self._sizes[first:end]:
            if count and size + n_bytes > limit_bytes:
                break
            count, size = count + 1, size + n_bytes
        return count, Parameter(Kind.INPUT, Region.STORE, self._start + sum(self._sizes[:first]), size)


def _pages(n_bytes: int) -> int:
    """Bytes of whole pages."""
    return -(-n_bytes // _PAGE_BYTES) * _PAGE_BYTES
