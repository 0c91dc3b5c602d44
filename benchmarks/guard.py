"""Whether Cloister got slower than a recorded run says, by ratios and not by times.

    python -m benchmarks.guard [benchmarks/results/bench.json] [--rounds N] [--margin 1.1]

Measures Cloister's engines of the record again, against what they were compared with there, where that is installed. A
ratio got worse if all of its new interval lies above the recorded one times the margin. Exit code 1 if one did.
"""

import argparse
import sys
from pathlib import Path

import msgspec

from cloister.bench.compare import BenchDocument, compare
from cloister.bench.engines import engine_named

RECORD = Path(__file__).parent / "results" / "bench.json"


def key(row):
    return row.model, row.engine, row.against, row.batch


def guarded(record):
    """Rows of ours whose other side can be measured here."""
    sides = {row.against for row in record.rows}
    there = {name for name in sides if engine_named(name).why_missing is None}
    return [row for row in record.rows if row.inside is not None and row.against in there]


def worse(before, now, margin):
    """(before, now) of the rows that got slower."""
    found = {key(row): row for row in now}
    pairs = [(row, found[key(row)]) for row in before if key(row) in found]
    return [(old, new) for old, new in pairs if new.ratio_low > margin * old.ratio_high]


def measure(rows, rounds):
    found = []
    for model, batch in dict.fromkeys((row.model, row.batch) for row in rows):
        of_these = [row for row in rows if (row.model, row.batch) == (model, batch)]
        engines = list(dict.fromkeys(row.engine for row in of_these))
        against = list(dict.fromkeys(row.against for row in of_these))
        found += compare([model], engines, against=against, batches=[batch], rounds=rounds).rows
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, nargs="?", default=RECORD)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--margin", type=float, default=1.1)
    options = parser.parse_args()
    before = guarded(msgspec.json.decode(options.record.read_bytes(), type=BenchDocument))
    slower = worse(before, measure(before, options.rounds), options.margin)
    for old, new in slower:
        print(
            f"{new.model} {new.engine} / {new.against}: {old.ratio:.3f}, now {new.ratio:.3f} (from {new.ratio_low:.3f})"
        )
    print(f"{len(before)} ratios, {len(slower)} got worse")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
