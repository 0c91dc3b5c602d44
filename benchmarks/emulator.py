"""How long the emulator takes: to be set up, and to the first answer of the trusted application, cold and restored.

    python -m benchmarks.emulator [--rounds N] [-o benchmarks/results/emulator.json]

Everything lies in a temporary folder: the set-up starts with nothing, downloads included. `boot` is from the start of
QEMU to the first answer; `up` is all of `cloister.emulator.up`. A cold start also saves the state for the next one.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from cloister import emulator
from cloister.emulator.cache import cache_folder


def bring_up():
    began = time.perf_counter()
    status = emulator.up()
    seconds = time.perf_counter() - began
    emulator.down()
    return {"restored": status.start.restored, "up": seconds, "boot": status.start.seconds}


def forget_states():
    for folder in (cache_folder() / "emulator").glob("state-*"):
        shutil.rmtree(folder)


def measure(rounds):
    """The first start, cold ones, restored ones."""
    first = bring_up()
    cold = []
    for _ in range(rounds):
        forget_states()
        cold.append(bring_up())
    restored = [bring_up() for _ in range(rounds)]
    assert not any(each["restored"] for each in [first, *cold])
    assert all(each["restored"] for each in restored)
    return {"setup": first, "cold": summary(cold), "restored": summary(restored)}


def summary(runs):
    def spread(name):
        values = [each[name] for each in runs]
        return {"median": statistics.median(values), "best": min(values), "worst": max(values)}

    return {"rounds": len(runs), "up": spread("up"), "boot": spread("boot")}


def show(name, row):
    for what in ("boot", "up"):
        times = row[what]
        print(f"{name:9} {what:5} median {times['median']:.2f} s ({times['best']:.2f} to {times['worst']:.2f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("-o", "--output", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CLOISTER_CACHE"], os.environ["CLOISTER_STATE"] = f"{folder}/cache", f"{folder}/state"
        row = measure(options.rounds)
    print(f"set-up, {row['setup']['up']:.1f} s with downloads")
    show("cold", row["cold"])
    show("restored", row["restored"])
    if options.output:
        version = subprocess.run(
            ["qemu-system-aarch64", "--version"], capture_output=True, text=True, check=True
        ).stdout
        host = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "qemu": version.splitlines()[0]}
        options.output.write_text(json.dumps({"schema": 1, "host": host, **row}, indent=1) + "\n")


if __name__ == "__main__":
    main()
