"""The report of a pattern search: first whether anything beats the uniform patterns, then tables, figures and cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ratplus.analysis.draw.output import Picture, remove_others, write
from ratplus.analysis.draw.tables import Table, to_markdown
from ratplus.analysis.search import figures
from ratplus.records.atomic import write_atomically
from ratplus.records.reading import read_json

RESULT = "search.json"
PAGE = "report.md"
_FIGURES = ("search_frontier_kv", "search_frontier_read", "search_frontier_flops", "search_frontier_latency",
            "search_choice", "search_prediction")  # fmt: skip
# Predicted and measured damage further apart than this factor are worth a line.
_FAR = 2.0


@dataclass(frozen=True)
class Report:
    """What was written: the first line of it, and all paths, the page last."""

    summary: str
    paths: list[Path]


def write_report(folder: Path) -> Report:
    """Write `<folder>/report/`: `report.md`, tables, figures. Reads `<folder>/search.json` alone.

    Raises:
        ValueError: no search has ended there, or its result is damaged.
    """
    path = Path(folder) / RESULT
    try:
        result = read_json(path)
        summary = first_line(result)
        target = Path(folder) / "report"
        made = [_table(result), _budgets(result)]
        pictures = _pictures(result)
    except FileNotFoundError:
        raise ValueError(f"{folder}: no search has ended here ({RESULT} is missing)") from None
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: damaged ({type(error).__name__}: {error}); search again, nothing is measured twice"
        ) from None
    written = write([*made, *pictures], target)
    remove_others(_FIGURES, target, written)
    text = [f"# Pattern search: {result['model']}", "", summary, ""]
    text += [line for part in made for line in (to_markdown(part), "")]
    text += [f"![{picture.name}]({picture.name}.png)\n" for picture in pictures]
    text += [_cost(result), ""]
    write_atomically(target / PAGE, "\n".join(text))
    return Report(summary, [*written, target / PAGE])


def first_line(result: dict) -> str:
    """Whether the search beats the best uniform pattern on the test split, budget by budget."""
    parts, wins = [], 0
    for budget in result["budgets"]:
        row = _uniform(budget)
        if row is None:
            parts.append(f"{budget['budget']}: no uniform pattern fits")
            continue
        over = row["over_searched"]
        if budget["beats_uniform"]:
            wins += 1
            parts.append(
                f"{budget['budget']}: {over['mean']:.4f} nats less damage than {row['pattern']} everywhere "
                f"[{over['low']:.4f}, {over['high']:.4f}]"
            )
        elif budget["winner"]["pattern"] == row["pattern"]:
            parts.append(f"{budget['budget']}: the choice is the uniform {row['pattern']} itself")
        else:
            parts.append(
                f"{budget['budget']}: not told apart from {row['pattern']} everywhere, {over['mean']:.4f} "
                f"[{over['low']:.4f}, {over['high']:.4f}]"
            )
    compared = sum(_uniform(budget) is not None for budget in result["budgets"])
    if compared and not wins:
        head = "Nothing beats the uniform patterns on the test split"
    elif compared:
        head = f"The search beats the best uniform pattern on the test split at {wins} of {compared} budgets"
    else:
        head = "No uniform pattern fits the budgets"
    return f"{head}. {'; '.join(parts)}."


def _uniform(budget: dict) -> dict | None:
    return next((row for row in budget["rows"] if row["name"] == "best uniform"), None)


def _table(result: dict) -> Table:
    """Searched, uniform and the other baselines at each budget, on the test split."""
    rows, shown = [], []
    for budget in result["budgets"]:
        for row in [*budget["rows"], *_random(budget)]:
            damage, over, cost = row["damage"], row["over_searched"], row["costs"][budget["kind"]]
            rows.append({
                "budget": budget["budget"], "pattern_of": row["name"], "pattern": row["pattern"], "cost": cost,
                "damage": damage["mean"], "damage_low": damage["low"], "damage_high": damage["high"],
                "over_searched": over["mean"], "over_searched_low": over["low"], "over_searched_high": over["high"],
                **{f"{group}_delta": row["groups"][group]["mean"] for group in row["groups"]},
            })  # fmt: skip
            own = row["name"] == "searched"
            shown.append({
                "Budget": budget["budget"], "Pattern of": f"**{row['name']}**" if own else row["name"],
                "Cost": f"{cost:.4f}", "Damage": _interval(damage),
                "Worse than searched by": "" if own else _interval(over),
                **{f"Δ {group}": f"{row['groups'][group]['mean']:.4f}" for group in row["groups"]},
            })  # fmt: skip
    caption = (
        f"Patterns on the test split of {result['model']}, {result['length']} tokens: damage = Δ text + "
        f"{result['weight']:.4g} × mean Δ of answers, nats per token, to the dense model; 95% intervals of a paired "
        "bootstrap over rows. Cost: share of the dense model's, in the budget's kind."
    )
    notes = ["ranking reversed must lose; if it does not, the damages of units hold no information at this sample"]
    if any(budget["random"] for budget in result["budgets"]):
        count = max(len(budget["random"]) for budget in result["budgets"])
        notes.append(f"random, median and best: of {count} hybrids by their damage on the test split itself")
    return Table("search", pd.DataFrame(rows), pd.DataFrame(shown), caption, notes, names=2, grouped=True)


def _random(budget: dict) -> list[dict]:
    ordered = sorted(budget["random"], key=lambda row: row["damage"]["mean"])
    if not ordered:
        return []
    return [ordered[len(ordered) // 2] | {"name": "random, median"}, ordered[0] | {"name": "random, best"}]


def _interval(estimate: dict) -> str:
    return f"{estimate['mean']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]"


def _budgets(result: dict) -> Table:
    """What was chosen at each budget, and how far it can be trusted."""
    rows = []
    for budget in result["budgets"]:
        winner, verify = budget["winner"], budget["verify"]
        own = next((pair for pair in budget["predicted"] if pair["searched"]), None)
        stability = budget["stability"]
        on_verify = verify.get(budget["how"], verify.get("best uniform", np.nan))
        rows.append({
            "Budget": budget["budget"], "Pattern": winner["pattern"], "Found": budget["how"],
            "Search": f"{budget['search']:.4f}", "Verify": f"{on_verify:.4f}",
            "Test": f"{winner['damage']['mean']:.4f}",
            "Predicted": "-" if own is None else f"{own['predicted']:.4f}",
            "Overlap of thirds": ", ".join(f"{x:.2f}" for x in stability.get("jaccard", [])) or "-",
            "Noise / damage": _noise(stability),
            **({"ms a step (dense)": f"{winner['decode_ms']:.3f} ({winner['dense_decode_ms']:.3f})"}
               if "decode_ms" in winner else {}),
        })  # fmt: skip
    notes = [
        "Search, Verify, Test: damage of the choice on each split; a rise from the first to the last is the winner's "
        "curse",
        "Overlap of thirds: Jaccard overlap of the units that get more than a fair share, chosen on each third of the "
        "search split alone",
        "Noise / damage: median standard error of a single substitution over the median positive damage; above 0.25 "
        "give more rows (text_rows, recall_rows, items)",
    ]
    for budget in result["budgets"]:
        own = next((pair for pair in budget["predicted"] if pair["searched"]), None)
        if own and own["measured"] > 0 and not 1 / _FAR <= own["predicted"] / own["measured"] <= _FAR:
            notes.append(
                f"{budget['budget']}: predicted and measured damage are more than {_FAR:g} times apart: units that can "
                "stand in for each other, or effects that damp each other"
            )
    if "latency" in result:
        fit = result["latency"]
        notes.append(
            f"predicted latency: fitted on {fit['points']} timings, relative error {fit['error']:.1%} (root mean "
            f"square), {fit['worst']:.1%} at most; the winners' times are measured"
        )
    frame = pd.DataFrame(rows)
    caption = "What was chosen at each budget. `pattern=` takes the pattern as it stands here."
    return Table("search_budgets", frame, frame, caption, notes, names=3)


def _noise(stability: dict) -> str:
    damage = stability.get("median_damage", 0.0)
    return f"{stability['median_stderr'] / damage:.2f}" if damage else "-"


def _pictures(result: dict) -> list[Picture]:
    kinds = dict.fromkeys(budget["kind"] for budget in result["budgets"])
    made = [Picture(f"search_frontier_{kind}", figures.frontier(result, kind)) for kind in kinds]
    made.append(Picture("search_choice", figures.choices(result)))
    if any(budget["predicted"] for budget in result["budgets"]):
        made.append(Picture("search_prediction", figures.prediction(result)))
    return made


def _cost(result: dict) -> str:
    spent = result["spent"]
    splits = "; ".join(
        f"{name}: {split['documents']} documents, " + ", ".join(f"{n} rows of {g}" for g, n in split["rows"].items())
        for name, split in result["splits"].items()
    )
    return (
        f"Cost: {spent['passes']:.1f} passes through the model in {spent['seconds']:.0f} s by this run, and "
        f"{spent['reused']} stored ones of earlier runs ({spent['reused_seconds']:.0f} s then). Splits: {splits}."
    )
