"""`dry_run=true`: the cells of a sweep, their ids, what exists already, and what they cost. Torch-free."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ratplus.costs.budget import parameters, stage_flops
from ratplus.costs.facts import at_most
from ratplus.costs.memory import BYTES_PER_ELEMENT
from ratplus.costs.of_model import model_cost
from ratplus.records.manifest import Entry
from ratplus.records.record import STAGES
from ratplus.records.status import stage_state
from ratplus.stages.store import check_store, is_stored
from ratplus.sweeps.define.compose import Composed
from ratplus.sweeps.define.manifest import check_cells, check_records, name_axes, plan_cells
from ratplus.sweeps.views.text_table import columns

# What is said of a stage that `run.store` has and the sweep has not.
STORED = "stored"


def print_dry_run(folder: Path, cells: list[Composed], last: str) -> None:
    """Print one line a cell, then the pretrainings that cells share, then the sums.

    The FLOPs to go are those of the stages that are neither done nor taken from `run.store`. KV bytes are the cache of
    one sequence at the end of the context, in the precision of training. KV read, shown where some pattern selects by
    query, is the mean over heads of the cache entries that a decoding step there reads.

    Raises:
        UsageError: what a sweep would refuse before it starts.
    """
    for store in {cell.config.run.store for cell in cells}:
        check_store(store, folder)
    entries = plan_cells(cells)
    check_records(folder, entries)
    check_cells(folder, entries)
    name_axes(entries)
    used = {stage for entry in entries for stage in entry["stages"]}
    wanted = tuple(stage for stage in STAGES[: STAGES.index(last) + 1] if stage in used)
    selects = any(p.data_dependent for cell in cells for row in cell.config.patterns for p in row)
    states: dict[tuple[str, str], str] = {}
    flops: dict[tuple[str, str], int] = {}
    rows, shared = [], {}
    for cell, entry in zip(cells, entries):
        config = cell.config
        vocab = entry["config"]["model"]["vocab_size"]
        each = stage_flops(config, vocab)
        for stage in (s for s in wanted if s in entry["stages"]):
            key = (stage, entry["stages"][stage])
            if key not in states:
                states[key] = _state(folder, *key, config.run.store)
            flops[key] = each[stage]
        shared.setdefault(("pretrain", entry["stages"]["pretrain"]), (cell, entry["axes"], vocab))
        rows.append(_cell_row(cell, entry, states, flops, wanted, selects))
    print(columns(rows))
    print()
    print(columns([_pretrain_row(key, *of, states, flops) for key, of in shared.items()]))
    count = Counter(states.values())
    left = sum(n for k, n in flops.items() if states[k] not in ("done", STORED))
    stored = f", {count[STORED]} come from the store {cells[0].config.run.store}" if count[STORED] else ""
    print(
        f"\n{len(entries)} cells in {folder}; {count['done']} of {len(states)} stages done{stored}, "
        f"{left:.3g} FLOPs to go. Nothing was run (dry_run=true)."
    )


def _state(folder: Path, stage: str, identity: str, store: str | None) -> str:
    """The status of a stage in the sweep's folder; `STORED` where the sweep would take it from the store."""
    status = stage_state(folder / stage / identity).status
    return STORED if status not in ("done", "running") and is_stored(store, stage, identity) else status


def _cell_row(cell: Composed, entry: Entry, states: dict, flops: dict, wanted: tuple[str, ...], selects: bool) -> dict:
    config = cell.config
    context = config.train.context
    model = config.model.build(entry["config"]["model"]["vocab_size"], context)
    spent = model_cost(model, config.patterns, context, BYTES_PER_ELEMENT[config.train.precision])
    row = {"id": entry["id"], "model": entry["model"], "pattern": entry["label"], "seed": entry["seed"]}
    row |= {axis: entry["axes"][axis] for axis in entry["axes"]}
    keys = {stage: (stage, entry["stages"].get(stage)) for stage in wanted}
    row |= {stage: states.get(key, "–") for stage, key in keys.items()}
    own = [flops.get(key, 0) for stage, key in keys.items() if stage != "pretrain"]
    row |= {
        "FLOPs": f"{sum(own):.3g}",
        "attention": at_most(f"{spent.attention_flops_ratio:.3f}", spent.pairs_exact),
        "KV bytes": spent.cache_bytes,
    }
    read = at_most(f"{spent.kv_read_per_head:g}", spent.kv_read_exact)
    return row | ({"KV read": read} if selects else {})


def _pretrain_row(key: tuple[str, str], cell: Composed, axes: dict, vocab: int, states: dict, flops: dict) -> dict:
    config = cell.config
    recipe = config.train.pretrain
    how = config.patterns.label if recipe.sparse else "dense"
    how = how if recipe.arl_pattern is None else f"{how}, ARL {recipe.arl_pattern.label}"
    given = config.model.init_from is not None
    shown = ("model.", "data.", "train.context", "train.pretrain.")
    in_with = ("train.pretrain.arl", "train.pretrain.sparse")  # the column "with" shows these
    varied = {k: v for k, v in axes.items() if k.startswith(shown) and not k.startswith(in_with)}
    return {
        "pretraining": key[1],
        "model": config.model.name,
        "seed": config.seed,
        **varied,
        "with": "given weights" if given else how,
        "parameters": parameters(config.model.build(vocab, config.train.context)),
        "tokens": 0 if given else recipe.steps * recipe.batch * config.train.context,
        "FLOPs": f"{flops[key]:.3g}",
        "status": states[key],
    }
