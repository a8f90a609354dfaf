"""Every number of a report's tables is that of the CSV beside it, in the unit that the column's title says."""

import csv
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest

# Of each table: title of a column -> (column of the CSV, by what it is multiplied).
PLAIN = {"Loss": ("loss", 1), "Δ loss": ("loss_delta", 1)}
SHARED = {
    **PLAIN, "Recall (%)": ("recall_accuracy", 100), "FLOPs": ("attention_flops_ratio", 1),
}  # fmt: skip
TABLES = {
    "accuracy_vs_dilation": {
        **SHARED, "Perplexity": ("perplexity", 1), "Next token (%)": ("next_token_accuracy", 100),
        "KV entries": ("kv_entries", 1),
    },
    "pareto": {
        **SHARED, "KV cache (KiB)": ("kv_bytes", 1 / 1024), "ms/token": ("timing:decode_ms_per_token", 1),
        "Needles (%)": ("needles", 100),
    },
    "pattern_tables_commonsense": {
        "hellaswag (%)": ("hellaswag/acc", 100), "piqa (%)": ("piqa/acc", 100), "Average (%)": ("average", 100),
        "Δ average": ("average_delta", 100),
    },
    "pattern_tables_other": {"my task": ("my_task/score", 1), "Δ my task": ("my_task/score_delta", 1)},
    "pattern_tables_recall": {
        "recall 1–63 (%)": ("recall_accuracy_1_64", 100), "All (%)": ("recall_accuracy", 100),
        "Δ all": ("recall_accuracy_delta", 100),
    },
    "masks": {"KV entries": ("kv_entries", 1), "Pairs seen (%)": ("visible_ratio", 100), "Window": ("window", 1)},
    "sensitivity": PLAIN,
    "scaling_gap": {"Parameters": ("parameters", 1e-6)},
}  # fmt: skip
# Where a CSV has no row for each of the table: what the made-up cells make of it (tests/analysis/conftest.py). Of the
# dense pattern of attention_tiny without adaptation, whose loss is 1.74.
ROWS = {
    # Loss + 1 / step at steps 1, 10, 20, 30, 40 of 4096 tokens: halfway down at step 10 already.
    "adaptation_curves": {"First loss": 2.74, "Last loss": 1.765, "Tokens to half": 40960, "Tokens": 163840},
    "niah_depth": {
        "0–20 %": 90, "20–40 %": 80, "40–60 %": 70, "60–80 %": 60, "80–100 %": 50, "All (%)": 70.0, "Δ all": 0.0,
    },
    "positions": {"Loss 0–127": 1.74, "Loss 128–255": 1.676, "Recall (%) 0–127": 90.0, "Recall (%) 128–255": 77.2},
    "ablation": {"D1": 1.74, "D4": 2.13, "D64": 2.52}, "ablation_gaps": {"D4": 0.39, "D64": 0.78},
}  # fmt: skip
NUMBER = re.compile(r"\**[−-]?[\d.]+(?:e[+-]\d+)?[MBk]?(?: ± [\d.]+)*(?: [=~])?\**|—|–|∞|\d+, \d+|")


def read(path: Path) -> tuple[list[dict[str, str]], list[bool]]:
    """The rows of a Markdown table, blanks of a group filled in; and for each column whether it is aligned right."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")] for line in lines]
    head, rule, *rows = cells
    for before, row in pairwise(rows):
        row[0] = row[0] or before[0]
    return [dict(zip(head, row, strict=True)) for row in rows], [mark.endswith(":") for mark in rule]


def value(text: str) -> float:
    text = text.strip("*").removesuffix(" =").removesuffix(" ~").partition(" ± ")[0].replace("−", "-")
    return math.nan if text in ("—", "–", "") else float(text.rstrip("M"))


def digits(text: str) -> int:
    return len(text.strip("*").partition(" ")[0].rstrip("M").partition(".")[2])


def names(row: dict[str, str]) -> tuple[str, str]:
    """(run, pattern) of a row of a CSV, as tables name it."""
    variant = row.get("variant", "").removeprefix("train.")
    run = row.get("run") or ", ".join(filter(None, [row.get("model", ""), variant]))
    return run, row["pattern"]


@pytest.fixture(scope="module")
def pages(reported) -> dict[str, Path]:
    return {path.stem: path for path in reported if path.suffix == ".md"}


@pytest.mark.parametrize("name", TABLES)
def test_numbers_are_those_of_the_csv_in_their_unit(pages, name):
    rows, _ = read(pages[name])
    with pages[name].with_suffix(".csv").open() as file:
        data = {names(row): row for row in csv.DictReader(file)}
    compared = 0
    for row in rows:
        place = row.get("Place")
        for key, own in data.items():
            ours = "pattern" in own and own["pattern"] == row.get("Pattern") and row.get("Model", key[0]) == key[0]
            if name == "sensitivity":
                ours = row["Model"] == key[0] and place == f"layer {own['layer']}: {own['sparse']}"
            if name == "scaling_gap":
                ours = row["Model"] == key[0]
            if not ours:
                continue
            for title, (column, scale) in TABLES[name].items():
                expected, shown = own[column], row[title]
                if expected == "":
                    assert math.isnan(value(shown)), (row, title)
                else:
                    room = 0.5000001 * 10.0 ** -digits(shown)
                    assert value(shown) == pytest.approx(float(expected) * scale, abs=room), (row, title)
                compared += 1
    assert compared >= len(rows) * len(TABLES[name])


@pytest.mark.parametrize("name", ROWS)
def test_numbers_that_a_table_makes_itself(pages, name):
    rows, _ = read(pages[name])
    row = next(row for row in rows if "attention_tiny" in row["Model"] and row.get("Pattern", "D1") == "D1"
               and row.get("Adapted", "–") == "–")  # fmt: skip
    for title, expected in ROWS[name].items():
        room = 0.5000001 * 10.0 ** -digits(row[title])
        assert value(row[title]) == pytest.approx(expected, abs=room), title


def test_what_gates_and_selections_were_measured_to_do(pages):
    """gates.json of conftest: a gate of 0.4 + 0.1 layer + 0.01 head, which remembers g / (1 - g) tokens."""
    rows, _ = read(pages["recurrence"])
    for row in rows[:4]:
        gates = [0.4 + 0.1 * int(row["Layer"]) + 0.01 * head for head in range(4)]
        kept = [g / (1 - g) for g in gates]
        assert value(row["Gate"]) == pytest.approx(sum(gates) / 4, abs=6e-4)
        assert value(row["Memory (tokens)"]) == pytest.approx(sum(kept) / 4, abs=0.06)
        assert value(row["Longest head"]) == pytest.approx(max(kept), abs=0.06)


def test_names_stand_left_and_numbers_right(pages):
    for name, path in pages.items():
        rows, right = read(path)
        for title, number in zip(rows[0], right, strict=True):
            cells = [row[title] for row in rows]
            numbers = all(NUMBER.fullmatch(cell) for cell in cells)
            # A layer, a dilation of training or whether there is a recurrence tells rows apart, as a name does.
            told = title in ("Layer", "Recurrence", "Adapted", "ARL", "Seeds", "D*")
            assert number == (numbers and not told) or title.startswith("Best for"), f"{name}: {title} {cells[:3]}"
