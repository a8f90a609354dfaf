"""A generated sweep of ten thousand cells loads and reports in under a minute and a gigabyte."""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from ratplus.pattern import Pattern

# What the report of a folder takes, told by a process of its own: seconds and peak megabytes.
MEASURE = """
import json, re, sys, time
start = time.perf_counter()
from ratplus.analysis.load import load_sweep
from ratplus.analysis.report import report
paths = report(sys.argv[1])
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "cpu_seconds": time.process_time(),
    # Not getrusage: its peak counts the parent, which this process was for a moment before it began.
    "megabytes": int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024,
    "page_megabytes": paths[-1].stat().st_size / 1e6,
    "columns_unique": bool(load_sweep(sys.argv[1]).columns.is_unique),
    "names": [path.name for path in paths],
}))
"""


def generate(sweep, cells: int) -> Path:
    """A sweep of so many cells: models × learning rates × patterns × seeds, each with records and a curve."""
    generator = np.random.default_rng(0)
    patterns = [Pattern(2**power, window) for power in range(7) for window in (0, 32, 64)] + [Pattern(None, 64, 4)]
    models = ("attention_tiny", "ratplus_tiny")
    seeds = 5
    rates = -(-cells // (len(models) * len(patterns) * seeds))
    # Ten thousand times a disk's flush would take minutes, and is no part of what is measured.
    with mock.patch("os.fsync"):
        for number in range(cells):
            rest, seed = divmod(number, seeds)
            rest, pattern = divmod(rest, len(patterns))
            model, rate = divmod(rest, rates)
            chosen = patterns[pattern]
            loss = 1.7 + 0.02 * rate + 0.1 * (model == 0) * np.log2(chosen.dilation or 64) + generator.normal(0, 0.01)
            metrics = sweep.results(float(loss), float(generator.uniform(0.2, 1)))
            metrics |= {f"my_task_{task}/acc": (float(generator.uniform()), 0.01) for task in range(6)}
            sweep.add(
                models[model], chosen, metrics, seed=seed, axes={"train.adapt.lr": 1e-3 * (rate + 1)},
                status="failed" if number % 97 == 0 else "done", timing={"evaluate_seconds": 1.0},
                curve=[(step, 4096 * step, float(loss) + 1 / step) for step in range(1, 41)],
            )  # fmt: skip
    return sweep.write("large")


def measure(folder: Path, timeout: float) -> dict:
    command = [sys.executable, "-c", MEASURE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_hundred_cells(sweep):
    took = measure(generate(sweep, 100), timeout=120)
    assert took["columns_unique"]
    assert {"index.html", "pattern_tables_other.csv", "adaptation_curves.png"} <= set(took["names"])
    assert took["megabytes"] < 600


@pytest.mark.slow
def test_ten_thousand_cells_within_a_minute_and_a_gigabyte(sweep):
    took = measure(generate(sweep, 10_000), timeout=600)
    print(took)
    assert took["columns_unique"]
    # Of the processor, imports included: on a busy machine the clock counts others' work too.
    assert took["cpu_seconds"] < 60
    assert took["megabytes"] < 1000
