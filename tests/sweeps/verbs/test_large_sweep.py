"""Every verb that reads a sweep, on ten thousand generated cells: within a minute of the processor and a gigabyte."""

import gc
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest

from ratplus.data.sources import corpus_of
from ratplus.records.manifest import read_manifest
from ratplus.sweeps.bench.generated_sweep import TARGET_MEGABYTES, TARGET_SECONDS, generate_sweep
from ratplus.sweeps.cli import READERS, VERBS
from ratplus.sweeps.define.collector import seldom_collected
from ratplus.sweeps.define.compose import compose_one

CELLS, FAILED = 10_000, 104
# A process of its own says last what it took of the processor and of memory, imports included.
MEASURED = """
import json, sys, time
from pathlib import Path
from ratplus.sweeps import cli
from ratplus.sweeps.bench.generated_sweep import peak_bytes
try:
    cli.main(sys.argv[1:])
finally:
    print(json.dumps([time.process_time(), peak_bytes() / 1e6]), file=sys.stderr)
"""


@dataclass
class Took:
    """Exit code, outputs, seconds of the processor, and megabytes at the peak."""

    code: int
    out: str
    err: str
    cpu_seconds: float
    megabytes: float


def took(place, *words) -> Took:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", MEASURED, *words],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    *err, last = done.stderr.splitlines()
    return Took(done.returncode, done.stdout, "\n".join(err), *json.loads(last))


def large(place, cells):
    """A folder `large` of so many cells, whose data is there; returns ids of its cells."""
    (place / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 6000)
    words = ["data=text", f"data.path={place / 'text.txt'}", f"data.root={place / 'data'}"]
    corpus = corpus_of(compose_one(["model=ratplus_tiny", *words]).config.data)
    generate_sweep(place / "large", cells, words, corpus.identity)
    return [cell["id"] for cell in read_manifest(place / "large")["cells"]]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    place = tmp_path_factory.mktemp("ten_thousand")
    ids = large(place, CELLS)
    shutil.copytree(place / "large", place / "again", copy_function=os.link)
    return place, ids


ADD = ["evaluate", "--add", "positions", "large", "eval.positions.width=32", "logger=none", "dry_run=true", "--json"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report", "large"], "large/report/index.html"),
        (["best", "large", "--metric=recall_accuracy", "--max=kv_ratio=0.3", "--tie=cheapest", "--json"], '"winner"'),
        (["compare", "large", "D1", "D16", "D64", "--json"], '"p_seeds"'),
        (["ls", 'kv_ratio<0.3 and status=="done"', "large"], f" of {CELLS} cells"),
        (["status", "large", "--json"], f'"failed": {FAILED}'),
        (["gc", "large", "--dry-run", "--json"], '"unneeded": []'),
        (["pack", "large", "--json"], '"left_out": []'),
        (ADD, '"untrained": 0'),
        (["report", "large", "again", "--fail", "recall_accuracy<-2pt@p0.05"], "recall_accuracy<-2pt@p0.05: "),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else None,
)
def test_a_verb_takes_no_more_than_a_minute_and_a_gigabyte(sweep, words, told):
    place, _ = sweep
    done = took(place, *words)
    print(words[0], f"{done.cpu_seconds:.1f} s of the processor, {done.megabytes:.0f} MB")
    assert done.code == (1 if words[0] == "status" else 0), done.err  # some cells of the sweep have failed
    assert told in done.out
    assert done.cpu_seconds < TARGET_SECONDS
    assert done.megabytes < TARGET_MEGABYTES


@pytest.mark.slow
def test_a_note_on_one_of_ten_thousand_cells(sweep):
    place, ids = sweep
    done = took(place, "note", ids[77], "look at this", "--folder", "large", "--json")
    assert json.loads(done.out)["note"] == "look at this"
    assert done.cpu_seconds < TARGET_SECONDS / 4
    shown = took(place, "ls", f'cell=="{ids[77]}"', "large", "--columns", "cell,note")
    assert "look at this" in shown.out


def test_what_is_added_to_a_cell_is_planned_with_one_whole_config(tmp_path, monkeypatch, capsys):
    """To make a cell's config from plain values takes a millisecond: counted, not timed."""
    from ratplus.sweeps import cli
    from ratplus.sweeps.runner import add_suite

    ids = large(tmp_path, 30)
    monkeypatch.chdir(tmp_path)
    calls, plain = [], add_suite.typed
    monkeypatch.setattr(add_suite, "typed", lambda config: calls.append(1) or plain(config))
    with pytest.raises(SystemExit) as ended:
        cli.main(ADD)
    assert ended.value.code == 0
    assert [cell["cell"] for cell in json.loads(capsys.readouterr().out)["cells"]] == ids
    assert len(calls) == len(ids)


def test_the_collector_runs_seldom_while_a_reader_works_and_then_as_before(monkeypatch, capsys):
    from ratplus.sweeps import cli
    from ratplus.sweeps.verbs import ls

    before, within = gc.get_threshold(), []
    monkeypatch.setattr(ls, "run", lambda arguments: within.append(gc.get_threshold()) or 0)
    with pytest.raises(SystemExit):
        cli.main(["ls"])
    assert within[0][0] > 10 * before[0]
    assert gc.get_threshold() == before
    with pytest.raises(ValueError, match="^asked$"), seldom_collected():
        raise ValueError("asked")
    assert gc.get_threshold() == before


def test_no_verb_that_trains_is_among_the_readers():
    """What a training step leaves in circles holds tensors, and must go soon."""
    assert set(VERBS) > READERS
    assert not {"sweep", "pretrain", "adapt", "sft", "evaluate", "search", "bench", "generate"} & READERS
