"""All that the page is given of a sweep and of two, and the words on it: see seen.py."""

from __future__ import annotations

import json
import math
import re

import pytest
from seen import check
from small_sweeps import add_plain, add_seeds, pattern_of, results

from ratplus import __version__
from ratplus.analysis.compare import compare
from ratplus.analysis.frame.load import read_sweep
from ratplus.analysis.page.page import write_page
from ratplus.pattern import Pattern

WRITTEN = re.compile(r"<style>.*?</style>|<script>.*?</script>|data:image/png;base64,[^\"]*", re.DOTALL)


pytestmark = pytest.mark.usefixtures("quick")


def told(text: str) -> str:
    """A page without its style, scripts and pictures, its data a line each, without ids."""
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    lines = []
    for key, value in json.loads(data).items():
        parts = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        if key == "details":
            parts = [{name: part} for name, part in value.items() if name not in ("ids", "commands", "stages")]
        lines += [f"{key}: {json.dumps(part, ensure_ascii=False)}" for part in parts]
    text = WRITTEN.sub("", text.replace(data, ""))
    text = text.replace(f"ratplus {__version__}", "ratplus <version>")
    text = re.sub(r' height="\d+"', "", text)  # of a figure: its legend's, as high as a font makes it
    found = "\n".join([*(line.strip() for line in text.splitlines() if line.strip()), *lines])
    return re.sub(r"\b[0-9a-f]{12}\b", "<id>", re.sub(r"/\S*/outputs/", "", found))


def test_seen_of_the_page_of_static_patterns(sweep):
    add_plain(sweep)
    curve = [(step, 4096 * step, 2 + 1 / step) for step in (1, 2, 4)]
    for rank, rate in enumerate((0.5, 0.25)):
        found = results(2.0 + rank, 0.5) | {"cloze_accuracy": (0.5, 0.1), "decode_kv_bytes": (7.0 + rank, None)}
        sweep.add("tuned_tiny", Pattern(4), found, axes={"train.lr": rate, "data.mix": "ab" if rank else 3},
                  timing={"decode_ms": 1.5 + rank}, kv_heads=2, parameters=1e6 + rank, curve=curve)  # fmt: skip
    folder = sweep.write()
    cell = sweep.cells[0]["id"]
    (folder / "evaluate" / cell / "note.txt").write_text("looked at twice\n")
    page = write_page(read_sweep(folder), [], [], "A headline.", folder / "report")
    check("page", told(page.read_text()))


def test_seen_of_the_page_of_seeds_with_items(sweep):
    add_seeds(sweep)
    folder = sweep.write()
    page = write_page(read_sweep(folder), [], [], "A headline.", folder / "report", reproduce=lambda entry: "again")
    data = told(page.read_text()).partition("what: ")[2]
    check("page_of_seeds", data)


def test_seen_of_the_page_of_two_sweeps(sweep, tmp_path):
    other = type(sweep)(tmp_path / "outputs" / "other")
    for number, folder in enumerate((sweep, other)):
        for model in ("ratplus_tiny", "attention_tiny"):
            for label, loss in (("D16", 2.5), ("D1", 2.0), ("layers 1 64 64 1", 2.25)):
                change = (0.5 if label == "D16" else -0.0625) * number
                found = results(loss + change, 0.5 + number / 4, 0.25) | {"winogrande/acc": (0.5, 0.0625)}
                folder.add(model, pattern_of(label), found)
    other.add("ratplus_tiny", Pattern(4), results(math.nan))
    paths = compare(sweep.write(), other.write("other"))
    csv = paths[2].read_text().splitlines()
    check(
        "page_of_two",
        "\n".join(path.name for path in paths),
        csv[0],
        csv[1].split(",")[:6],
        told(paths[-1].read_text()),
    )
