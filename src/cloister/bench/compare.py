"""Models in several engines, side by side: what `cloister bench` measures on this machine."""

from __future__ import annotations

import contextlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from cloister.bench import models
from cloister.bench.engines import Case, Engine, Floats, PeerEngine, Prepared, engine_named, silent
from cloister.bench.timing import paired_ratio, time_rounds
from cloister.enclave.local import local_info
from cloister.errors import UserError
from cloister.progress import Progress

__all__ = ["FASTEST", "BenchDocument", "BenchRow", "NotMeasured", "compare", "processor"]

#: Instead of an engine to compare with: the fastest engine of others.
FASTEST = "fastest"
#: Logits that do not follow torch's are not those of the model: a broken engine is not compared with. By bits; int8 in
#: a deep model with random weights is far from float32 (0.47 to 0.6 on MobileNetV2), but what is broken is near 0.
_LEAST_AGREEMENT = {8: 0.3, 32: 0.99}
_N_CHECKED = 16
_Seconds = npt.NDArray[np.float64]


class BenchRow(msgspec.Struct, frozen=True, kw_only=True):
    """An engine against another, on one model.

    Attributes:
        model: its name.
        engine: what was measured.
        against: what it is compared with, in the same rounds.
        ratio: time of `engine` / time of `against`: the median of the rounds' ratios.
        ratio_low: lower end of an interval that holds the true median with 95 %.
        ratio_high: its upper end.
        batch: images in a run.
        bits: of `engine`: 8: int8; 32: float32.
        inside: which layers are inside, `none`, `all` or `last:K`; None for others' engines.
        n_inside: how many layers that is; None for others' engines.
        budget_bytes: inside memory that was allowed; None for no limit and for others' engines.
        inside_peak_bytes: the most inside memory that the enclave measured; None for others' engines.
        weight_bytes: of the whole model as Cloister holds it; None for others' engines.
        agreement: correlation of `engine`'s logits with those of torch in float32, their means over images taken off.
    """

    model: str
    engine: str
    against: str
    ratio: float
    ratio_low: float
    ratio_high: float
    batch: int
    bits: Literal[8, 32]
    inside: str | None
    n_inside: int | None
    budget_bytes: int | None
    inside_peak_bytes: int | None
    weight_bytes: int | None
    agreement: float


class NotMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """What there is no row of.

    Attributes:
        model: its name; None if it holds for all.
        engine: what was asked for.
        batch: images in a run; None if it holds for all.
        reason: why there is none.
    """

    model: str | None
    engine: str
    batch: int | None
    reason: str


class BenchDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `cloister bench` found: ratios of times of the same run, and no time.

    Attributes:
        schema: name and version of this document.
        enclave: where the inside ran.
        isolation: what keeps the rest of the machine out, in words.
        processor: that all ran on.
        threads: that each engine was given.
        rounds: of which ratios are medians.
        versions: of the engines, by name.
        rows: the ratios.
        missing: what was not measured.
    """

    schema: Literal["cloister.bench/1"] = "cloister.bench/1"
    enclave: Literal["local"] = "local"
    isolation: str
    processor: str
    threads: Literal[1] = 1
    rounds: int
    versions: dict[str, str]
    rows: tuple[BenchRow, ...]
    missing: tuple[NotMeasured, ...]


def compare(
    model_names: Sequence[str],
    engine_names: Sequence[str],
    *,
    against: Sequence[str],
    batches: Sequence[int] = (1,),
    rounds: int = 15,
    progress: Progress | None = None,
) -> BenchDocument:
    """Measure models in engines side by side, each on one thread.

    Args:
        model_names: out of `cloister.bench.models.NAMES`.
        engine_names: what to measure; those that are not installed are listed as not measured.
        against: engines to compare with; `fastest` is the fastest engine of others.
        batches: images in a run.
        rounds: see `cloister.bench.timing.time_rounds`.
        progress: told how far it is, or None.

    Raises:
        UserError: there is no such model or engine, or an engine to compare with is not installed.
        EnclaveError: the local enclave fails.
    """
    for name in model_names:
        models.check_name(name)
    engines, missing = _engines(engine_names, against)
    rows: list[BenchRow] = []
    with _one_thread():
        for at, name in enumerate(model_names):
            bench = _Bench(engines, against, rounds)
            parts = [
                _Part(progress, at * len(batches) + i, len(model_names) * len(batches)) for i in range(len(batches))
            ]
            bench.measure(name, batches, parts)
            rows += bench.rows
            missing += bench.missing
    return BenchDocument(
        isolation=local_info().isolation,
        processor=processor(),
        rounds=rounds,
        versions={engine.name: engine.version for engine in engines},
        rows=tuple(rows),
        missing=tuple(missing),
    )


def _engines(names: Sequence[str], against: Sequence[str]) -> tuple[list[Engine], list[NotMeasured]]:
    """The engines that are there, and those that are not."""
    wanted = [engine_named(name) for name in dict.fromkeys([*names, *(name for name in against if name != FASTEST)])]
    reasons = {engine.name: engine.why_missing for engine in wanted}
    for name in against:
        if reasons.get(name):
            raise UserError(
                f"`{name}`, to compare with, cannot be measured here: {reasons[name]}",
                "`pip install 'cloister[bench]'` installs all engines",
            )
    missing = [
        NotMeasured(model=None, engine=name, batch=None, reason=reason) for name, reason in reasons.items() if reason
    ]
    return [engine for engine in wanted if not reasons[engine.name]], missing


class _Part:
    """The progress of one of several parts, in thousandths."""

    def __init__(self, whole: Progress | None, at: int, n_parts: int) -> None:
        self.whole, self.at, self.n_parts = whole, at, n_parts

    def update(self, done: int, total: int, text: str) -> None:
        """See `Progress.update`."""
        if self.whole:
            self.whole.update(self.at * 1000 + done * 1000 // total, self.n_parts * 1000, text)


class _Ready(NamedTuple):
    """An engine that is ready to run, and gives what the model gives."""

    engine: Engine
    prepared: Prepared
    agreement: float


class _Bench:
    """One model in all engines.

    Attributes:
        rows: the ratios found.
        missing: what could not be measured.
    """

    def __init__(self, engines: Sequence[Engine], against: Sequence[str], rounds: int) -> None:
        self.rows: list[BenchRow] = []
        self.missing: list[NotMeasured] = []
        self._engines, self._against, self._rounds = engines, against, rounds

    def measure(self, model: str, batches: Sequence[int], parts: Sequence[Progress]) -> None:
        """Measure it with each batch size, each with its part of the progress."""
        with tempfile.TemporaryDirectory(prefix="cloister-bench-") as folder:
            case = Case(models.load(model), Path(folder))
            for batch, part in zip(batches, parts, strict=True):
                with contextlib.ExitStack() as stack:
                    ready = list(self._ready(case, batch, stack, _Part(part, 0, 2)))
                    self.rows += self._rows(case, batch, ready, _Part(part, 1, 2))

    def _ready(self, case: Case, batch: int, stack: contextlib.ExitStack, progress: Progress) -> Iterator[_Ready]:
        for done, engine in enumerate(self._engines):
            progress.update(done, len(self._engines), f"{case.target.name}: preparing {engine.name}")
            try:
                prepared = engine.prepare(case, batch, stack)
                agreement = _agreement(case, batch, prepared)
            except Exception as error:
                # What others raise is theirs to know; of our own, only what a plan cannot do is no fault.
                if not isinstance(engine, PeerEngine) and not isinstance(error, UserError):
                    raise
                self._miss(case, engine, batch, f"{type(error).__name__}: {error}".splitlines()[0])
                continue
            if agreement < _LEAST_AGREEMENT[engine.bits]:
                self._miss(case, engine, batch, f"its logits are not the model's: they correlate with {agreement:.3f}")
                continue
            yield _Ready(engine, prepared, agreement)

    def _miss(self, case: Case, engine: Engine, batch: int, reason: str) -> None:
        self.missing.append(NotMeasured(model=case.target.name, engine=engine.name, batch=batch, reason=reason))

    def _rows(self, case: Case, batch: int, ready: Sequence[_Ready], progress: Progress) -> Iterator[BenchRow]:
        """Each engine against each that it is to be compared with."""
        if not ready:
            return
        x = models.images(case.target.input_shape, batch, seed=3)
        runs = {one.engine.name: _run(one.prepared, x) for one in ready}
        seconds = time_rounds(runs, rounds=self._rounds, progress=progress)
        for against in dict.fromkeys(_resolve(name, ready, seconds) for name in self._against):
            if against == FASTEST:
                reason = "no engine of others was measured"
                self.missing.append(NotMeasured(model=case.target.name, engine=FASTEST, batch=batch, reason=reason))
            for one in ready:
                if against in seconds and one.engine.name != against:
                    yield _row(case, batch, one, against, seconds)


def _run(prepared: Prepared, x: Floats) -> Callable[[], object]:
    taken = prepared.take(x)
    return lambda: prepared.run(taken)


def _resolve(name: str, ready: Sequence[_Ready], seconds: Mapping[str, _Seconds]) -> str:
    """`fastest` as the engine that it is, if there is one."""
    if name != FASTEST:
        return name
    peers = [one.engine.name for one in ready if isinstance(one.engine, PeerEngine)]
    return min(peers, key=lambda peer: float(np.median(seconds[peer])), default=FASTEST)


def _row(case: Case, batch: int, one: _Ready, against: str, seconds: Mapping[str, _Seconds]) -> BenchRow:
    ratio = paired_ratio(seconds[one.engine.name], seconds[against])
    session = one.prepared.session
    plan = session.bundle.manifest.plan if session else None
    return BenchRow(
        model=case.target.name,
        engine=one.engine.name,
        against=against,
        ratio=ratio.ratio,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        batch=batch,
        bits=one.engine.bits,
        inside=plan.inside if plan else None,
        n_inside=sum(layer.inside for layer in plan.layers) if plan else None,
        budget_bytes=plan.budget_bytes if plan else None,
        inside_peak_bytes=session.stats.inside_peak_bytes if session else None,
        weight_bytes=sum(layer.weight_bytes for layer in plan.layers) if plan else None,
        agreement=one.agreement,
    )


def _agreement(case: Case, batch: int, prepared: Prepared) -> float:
    """Correlation of logits with torch's in float32, over some images.

    Of what differs between images: logits of a random model are mostly the same for all, and a constant would agree.
    """
    x = models.images(case.target.input_shape, -(-_N_CHECKED // batch) * batch, seed=4)
    with silent():
        got = np.concatenate([_array(prepared, x[at : at + batch]) for at in range(0, len(x), batch)])
    with torch.no_grad():
        expected = case.module(torch.from_numpy(x)).numpy()
    if got.shape != expected.shape or not np.isfinite(got).all():
        return 0.0
    got, expected = got - got.mean(axis=0), expected - expected.mean(axis=0)
    return float((got * expected).sum() / max(np.linalg.norm(got) * np.linalg.norm(expected), 1e-30))


def _array(prepared: Prepared, x: Floats) -> Floats:
    """A copy, since engines may give the same memory again."""
    result = prepared.run(prepared.take(np.ascontiguousarray(x)))
    return np.array(result.numpy() if isinstance(result, torch.Tensor) else result, np.float32)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processor() -> str:
    """The processor's name, as Linux says it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
