"""`ratplus plan`: what a sweep would cost, from its config alone. No data, no weights, no GPU; torch-free."""

from __future__ import annotations

import argparse

from ratplus.config.cell import Config
from ratplus.config.model import ModelConfig
from ratplus.costs.budget import evaluation_rows, forward_flops, harness_rows, parameters, stage_flops
from ratplus.costs.cost import cost
from ratplus.costs.memory import BYTES_PER_ELEMENT, training_memory
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.pattern import Pattern
from ratplus.records.record import STAGES
from ratplus.stages.plan import plan
from ratplus.sweeps.define.compose import Composed, compose_cells
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.verbs.text_table import columns

_GB = 1e9


def print_plan(arguments: argparse.Namespace) -> None:
    """Print parameters, tokens, FLOPs, GPU-hours, memory a GPU and each pattern's savings for all cells.

    Raises:
        UsageError: a mistake in the config or an option out of range.
    """
    for name, value in (("--mfu", arguments.mfu), ("--tflops", arguments.tflops), ("--vocab", arguments.vocab),
                        ("--tokens-per-second", arguments.tokens_per_second)):  # fmt: skip
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{name}: got {value:g}; it must be > 0")
    if arguments.mfu > 1:
        raise UsageError(f"--mfu: got {arguments.mfu:g}; it is a fraction of --tflops: at most 1")
    cells = compose_cells(arguments.overrides, arguments.config_dir)
    vocab = arguments.vocab or ByteTokenizer.vocab_size
    of_model: dict[str, list[Composed]] = {}
    for cell in cells:
        model = cell.config.model.build(vocab, cell.config.train.context)
        of_model.setdefault(repr((cell.config.model.name, model, cell.config.trainer)), []).append(cell)
    texts = [_model_text(group, vocab, arguments) for group in of_model.values()]
    print("\n\n".join(texts))
    for note in dict.fromkeys(filter(None, (_harness_note(cell.config) for cell in cells))):
        print(f"\n{note}")
    print(
        f"\nGPU-hours are estimates: {_speed(arguments)}. Memory is what tensors need at the peak of a training step; "
        "a few percent come on top for the allocator and kernels."
    )


def _speed(arguments: argparse.Namespace) -> str:
    if arguments.tokens_per_second:
        return f"every stage at {arguments.tokens_per_second:g} tokens a second and GPU"
    return f"{arguments.mfu:.0%} of {arguments.tflops:g} TFLOP/s a GPU"


def _model_text(cells: list[Composed], vocab: int, arguments: argparse.Namespace) -> str:
    config = cells[0].config
    vocab = plan(config, {}, vocab).vocab_size  # with the symbols of the recall task
    model = config.model.build(vocab, config.train.context)
    count = parameters(model)
    keys = "" if model.kv_heads is None else f" on {model.kv_heads} of keys"
    head = (
        f"{config.model.name}: {count:,} parameters ({model.layers} layers, d_model {model.d_model:,}, {model.heads} "
        f"heads of {model.d_head}{keys}, vocabulary {vocab:,}), context {config.train.context:,}"
    )
    return "\n\n".join(
        [
            head,
            columns(_stage_rows(cells, vocab, arguments)),
            _memory_text(config, model, count),
            columns(_pattern_rows(cells, model)),
        ]
    )


def _stage_rows(cells: list[Composed], vocab: int, arguments: argparse.Namespace) -> list[dict]:
    """One row a stage: how many distinct ones the cells need, and what these cost in all."""
    needed: dict[str, dict[str, tuple[int, int]]] = {stage: {} for stage in STAGES}
    for cell in cells:
        config = cell.config
        flops = stage_flops(config, vocab)
        for stage in plan(config, {}, vocab):
            needed[stage.name][stage.id] = (_tokens(config, stage.name), flops[stage.name])
    with_sft = next((cell.config for cell in cells if cell.config.train.sft.steps), None)
    rows = []
    for stage, of_id in needed.items():
        if not of_id:
            continue  # a stage that no cell has
        tokens, flops = (sum(column) for column in zip(*of_id.values()))
        given = stage == "pretrain" and cells[0].config.model.init_from
        shown = with_sft if stage == "sft" else cells[0].config
        recipe = None if given else getattr(shown.train, stage, None)
        rows.append(
            {
                "stage": stage,
                "runs": len(of_id),
                "steps": "" if recipe is None else f"{recipe.steps:,}",
                "batch": "" if recipe is None else f"{recipe.batch:,}",
                "tokens": f"{tokens:,}",
                "FLOPs": f"{flops:.4g}",
                "GPU-hours": f"{_hours(tokens, flops, arguments):,.4g}",
            }
        )
    return rows


def _tokens(config: Config, stage: str) -> int:
    if stage == "evaluate":
        return sum(rows * length for rows, length in evaluation_rows(config))
    if stage == "pretrain" and config.model.init_from:
        return 0
    recipe = getattr(config.train, stage)
    length = config.train.sft.length if stage == "sft" else None
    return recipe.steps * recipe.batch * (length or config.train.context)


def _harness_note(config: Config) -> str:
    """What the count of tokens says of lm-eval's tasks."""
    if not config.eval.tasks:
        return ""
    names = ", ".join(task["task"] if isinstance(task, dict) else task for task in config.eval.tasks)
    rows, length = harness_rows(config)
    if not rows:
        return (
            f"evaluate: not counted: {names}; how much they ask is known only when they have been loaded. "
            "With eval.harness.limit=N they are counted, at most."
        )
    return (
        f"evaluate: of these, at most {rows * length:,} tokens a cell are counted for {names}: "
        f"{config.eval.harness.limit} items of each, {length:,} tokens long; an item of several choices counts once."
    )


def _hours(tokens: int, flops: int, arguments: argparse.Namespace) -> float:
    if arguments.tokens_per_second:
        return tokens / arguments.tokens_per_second / 3600
    return flops / (arguments.mfu * arguments.tflops * 1e12) / 3600


def _memory_text(config: Config, model: ModelConfig, count: int) -> str:
    trainer, recipe = config.trainer, config.train.pretrain
    gpus = trainer.devices * trainer.nodes
    rows = min(recipe.micro_batch or recipe.batch, -(-recipe.batch // gpus))
    shards = gpus if trainer.strategy == "fsdp" else 1
    memory = training_memory(
        model, count, rows * config.train.context, config.train.precision, shards,
        trainer.activation_checkpointing,
    )  # fmt: skip
    parts = {k: v for k, v in vars(memory).items()} | {"total": memory.total}
    line = columns([{f"{name} (GB)": f"{value / _GB:.3g}" for name, value in parts.items()}])
    how = f"{trainer.strategy}, {gpus} GPU{'s' if gpus > 1 else ''}, {rows} sequence{'s' if rows > 1 else ''} at a time"
    how += f", {config.train.precision}" + (", activation checkpointing" if trainer.activation_checkpointing else "")
    return f"memory of each GPU in training ({how}):\n{line}"


def _pattern_rows(cells: list[Composed], model: ModelConfig) -> list[dict]:
    """One row a pattern: what it saves at the context's end, beside dense attention."""
    rows, seen = [], set()
    for cell in cells:
        config = cell.config
        if config.patterns in seen:
            continue
        seen.add(config.patterns)
        length, precision = config.train.context, config.train.precision
        spent = cost(
            config.patterns, length, model.d_head, recurrence=model.recurrence,
            bytes_per_element=BYTES_PER_ELEMENT[precision], kv_heads=model.kv_heads,
        )  # fmt: skip
        dense = forward_flops(model, Pattern(), length)
        rows.append(
            {
                "pattern": config.patterns.label,
                "attention FLOPs": f"{spent.attention_flops:.4g}",
                "of dense": f"1/{1 / spent.attention_flops_ratio:.1f}",
                "all FLOPs": f"{forward_flops(model, config.patterns, length) / dense:.1%}",
                "KV bytes a sequence": f"{spent.cache_bytes:,}",
                "KV entries of dense": f"1/{1 / spent.kv_ratio:.1f}" if spent.kv_ratio else "0",
            }
        )
    return rows
