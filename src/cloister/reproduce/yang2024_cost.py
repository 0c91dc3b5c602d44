"""The table of memory and time of Yang, Ramshankar et al. (ISLPED 2024), done again.

The paper gives, for four victims in float32 and quantized, megabytes, and seconds for a CIFAR-100 image on a Raspberry
Pi 3B+ without (`vanilla`) and with its method (`ours`). Seconds of another machine compare with nothing, but ratios do.
Vanilla is here the same program with nothing inside; which layers the paper puts inside is not known: here it is all of
them, the most that it can cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from cloister.bench.compare import BenchDocument, compare
from cloister.bench.counts import CountRow, Missing, count_instructions
from cloister.bench.engines import OwnEngine
from cloister.progress import Progress
from cloister.units import format_bytes

__all__ = [
    "PAPER",
    "Cost",
    "CostDocument",
    "CostRow",
    "NotReproduced",
    "Ratios",
    "paper_ratios",
    "reproduce_by_count",
    "reproduce_by_time",
]

Bits = Literal[8, 32]


class Cost(NamedTuple):
    """A row of the paper's table.

    Attributes:
        megabytes: of the model's weights.
        vanilla_seconds: for an image, without protection.
        ours_seconds: for an image, with the paper's method.
    """

    megabytes: float
    vanilla_seconds: float
    ours_seconds: float


#: The paper's table by model and bits; its `(Q)` is 8 here: a quarter of the megabytes.
PAPER: dict[tuple[str, Bits], Cost] = {
    ("alexnet", 32): Cost(9.76, 4.65, 13.06),
    ("alexnet", 8): Cost(2.44, 1.88, 6.62),
    ("vgg11", 32): Cost(36.23, 3.97, 10.89),
    ("vgg11", 8): Cost(9.06, 1.61, 5.53),
    ("vgg16", 32): Cost(57.69, 4.65, 11.41),
    ("vgg16", 8): Cost(14.42, 1.88, 5.80),
    ("resnet20", 32): Cost(1.14, 4.19, 5.30),
    ("resnet20", 8): Cost(0.28, 1.69, 2.27),
}
_MODELS = tuple(dict.fromkeys(model for model, _ in PAPER))
_BITS: tuple[Bits, ...] = (32, 8)
_VANILLA: dict[Bits, str] = {bits: OwnEngine.make("none", bits).name for bits in _BITS}


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """What a row of the table says, free of the machine.

    Attributes:
        cost: ours / vanilla, both with the row's bits; of times, or of instructions.
        to_float: ours / vanilla in float32; None if there is none.
        vanilla_to_float: vanilla / vanilla in float32; None if there is none.
        weights_to_float: bytes of the weights / those in float32; None if there are none.
    """

    cost: float
    to_float: float | None
    vanilla_to_float: float | None
    weights_to_float: float | None


class CostRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table at one budget.

    Attributes:
        model: the victim.
        bits: 32; 8 for the paper's `(Q)`.
        budget_bytes: inside memory that was allowed; None for no limit.
        inside_bytes: inside memory that was taken: by ours only.
        weight_bytes: of the model, with ours and vanilla; None where instructions are counted.
        paper_megabytes: the paper's.
        found: what was found.
        cost_low: lower end of an interval that holds the true median of `found.cost` with 95 %.
        cost_high: its upper end.
        paper: what the paper's numbers say.
    """

    model: str
    bits: Bits
    budget_bytes: int | None
    inside_bytes: int
    weight_bytes: int | None
    paper_megabytes: float
    found: Ratios
    cost_low: float
    cost_high: float
    paper: Ratios


class NotReproduced(msgspec.Struct, frozen=True, kw_only=True):
    """A row that could not be done.

    Attributes:
        model: the victim.
        row: what was asked for.
        reason: why there is none.
    """

    model: str
    row: str
    reason: str


class CostDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The table with the paper's beside it.

    Attributes:
        schema: name and version of this document.
        enclave: where the inside ran.
        isolation: what keeps the rest of the machine out, in words.
        machine: processor or emulated board.
        measured: what ratios are of.
        rounds: of which they are medians.
        rows: the table.
        missing: rows that could not be done.
    """

    schema: Literal["cloister.yang2024-cost/1"] = "cloister.yang2024-cost/1"
    enclave: Literal["local", "emulator"]
    isolation: str
    machine: str
    measured: Literal["time", "instructions"]
    rounds: int
    rows: tuple[CostRow, ...]
    missing: tuple[NotReproduced, ...]


def reproduce_by_time(
    *, budgets: Sequence[int | None] = (None, 1 << 20), rounds: int = 15, progress: Progress | None = None
) -> CostDocument:
    """Do the table on this machine with the local enclave, on one thread.

    Args:
        budgets: inside memory; None for no limit.
        rounds: see `cloister.bench.timing.time_rounds`.
        progress: told how far it is, or None.

    Raises:
        EnclaveError: the enclave fails.
    """
    engines = [OwnEngine.make("all", bits, budget).name for bits in _BITS for budget in budgets]
    found = compare(_MODELS, engines, against=list(_VANILLA.values()), rounds=rounds, progress=progress)
    return CostDocument(
        enclave="local",
        isolation=found.isolation,
        machine=found.processor,
        measured="time",
        rounds=rounds,
        rows=tuple(row for model in _MODELS for row in _timed_rows(model, found)),
        missing=tuple(NotReproduced(model=str(one.model), row=one.engine, reason=one.reason) for one in found.missing),
    )


def _timed_rows(model: str, found: BenchDocument) -> Iterator[CostRow]:
    rows = {(row.engine, row.against): row for row in found.rows if row.model == model}
    quantized = rows[_VANILLA[8], _VANILLA[32]]
    float_bytes = next((row.weight_bytes for row in rows.values() if row.bits == 32), None)
    for row in rows.values():
        if row.inside == "all" and row.against == _VANILLA[row.bits]:
            assert row.inside_peak_bytes is not None  # all of it is inside
            to_float = rows[row.engine, _VANILLA[32]].ratio
            ratios = Ratios(
                cost=row.ratio,
                to_float=to_float,
                vanilla_to_float=1.0 if row.bits == 32 else quantized.ratio,
                weights_to_float=row.weight_bytes / float_bytes if row.weight_bytes and float_bytes else None,
            )
            yield CostRow(
                model=model,
                bits=row.bits,
                budget_bytes=row.budget_bytes,
                inside_bytes=row.inside_peak_bytes,
                weight_bytes=row.weight_bytes,
                paper_megabytes=PAPER[model, row.bits].megabytes,
                found=ratios,
                cost_low=row.ratio_low,
                cost_high=row.ratio_high,
                paper=paper_ratios(model, row.bits),
            )


def reproduce_by_count(
    *, budgets: Sequence[int | None] = (None, 1 << 20), repeats: int = 5, progress: Progress | None = None
) -> CostDocument:
    """Do the quantized half of the table in the emulator, with instructions for seconds.

    Args:
        budgets: inside memory; None for all that the emulated board has.
        repeats: counts to take the median of.
        progress: told how far it is, or None.

    Raises:
        EnclaveError: the emulator does not start, or fails.
    """
    found = count_instructions(_MODELS, budgets=budgets, repeats=repeats, progress=progress)
    single = [row for row in found.rows if row.inside == "all" and row.images == 1]
    missing = [NotReproduced(model=one.model, row=_budget_text(one), reason=one.reason) for one in found.missing]
    missing += [NotReproduced(model=model, row="float32", reason="int8 programs are counted") for model in _MODELS]
    return CostDocument(
        enclave="emulator",
        isolation=found.isolation,
        machine=found.board,
        measured="instructions",
        rounds=repeats,
        rows=tuple(_counted_row(row) for row in single if row.budget_bytes in budgets),
        missing=tuple(missing),
    )


def _budget_text(one: Missing) -> str:
    return "without a budget" if one.budget_bytes is None else f"in {format_bytes(one.budget_bytes)}"


def _counted_row(row: CountRow) -> CostRow:
    ratio = row.against_outside
    return CostRow(
        model=row.model,
        bits=8,
        budget_bytes=row.budget_bytes,
        inside_bytes=row.inside_bytes,
        weight_bytes=None,
        paper_megabytes=PAPER[row.model, 8].megabytes,
        found=Ratios(cost=ratio, to_float=None, vanilla_to_float=None, weights_to_float=None),
        cost_low=ratio * (1 - row.spread),
        cost_high=ratio * (1 + row.spread),
        paper=paper_ratios(row.model, 8),
    )


def paper_ratios(model: str, bits: Bits) -> Ratios:
    """What the paper's row says."""
    row, in_float = PAPER[model, bits], PAPER[model, 32]
    return Ratios(
        cost=row.ours_seconds / row.vanilla_seconds,
        to_float=row.ours_seconds / in_float.vanilla_seconds,
        vanilla_to_float=row.vanilla_seconds / in_float.vanilla_seconds,
        weights_to_float=row.megabytes / in_float.megabytes,
    )
