"""What a model and a run cost in parameters and FLOPs, in closed form: no torch, no weights, any size at once.

FLOPs are those of matrix products (a multiply-add is two), of attention over visible pairs, and of the recurrence; a
backward pass costs twice its forward pass. Not counted: norms, activations, softmax, RoPE, the optimizer. Costs that
depend on the pattern alone are in `ratplus.cost`.
"""

from __future__ import annotations

from ratplus.config import Config, ModelConfig, RecipeSection
from ratplus.cost import attention_flops, recurrence_flops
from ratplus.data.batches import row_counts
from ratplus.pattern import Pattern, PatternMap

_BACKWARD = 2  # gradients of inputs and of weights


def parameters(model: ModelConfig) -> int:
    """Trainable numbers of a model; the embedding is tied to the output head and counts once."""
    return _matrices(model) + (2 * model.layers + 1) * model.d_model


def forward_flops(model: ModelConfig, patterns: Pattern | PatternMap | None, length: int) -> int:
    """FLOPs of one forward pass over one sequence of `length` tokens; `patterns` None is dense."""
    heads = model.layers * model.heads
    if not isinstance(patterns, PatternMap):
        patterns = PatternMap.uniform(patterns or Pattern(), model.layers, model.heads)
    total = 2 * length * _matrices(model) + attention_flops(patterns, length, model.d_head)
    return total + (recurrence_flops(length, model.d_head, heads) if model.recurrence else 0)


def training_flops(config: Config, recipe: RecipeSection, patterns: PatternMap | None, model: ModelConfig) -> int:
    """FLOPs of one optimisation run: every step's passes (two with active recurrence learning), forward and backward.

    `patterns`: what the run trains with; None is dense.
    """
    passes = [patterns]
    if recipe.arl:
        passes.append(Pattern(recipe.arl_dilation, recipe.arl_window, recipe.arl_sinks))
    counts = row_counts(recipe.batch, config.train.context, config.data.recall)
    lengths = (config.train.context, config.data.recall.length)
    batch = sum(rows * forward_flops(model, p, n) for p in passes for rows, n in zip(counts, lengths) if rows)
    return (1 + _BACKWARD) * recipe.steps * batch


def stage_flops(config: Config, vocab_size: int) -> dict[str, int]:
    """FLOPs of each stage of a cell: {"pretrain", "adapt", "evaluate"}."""
    model = config.model.build(vocab_size, config.train.context)
    train, section = config.train, config.eval
    first = config.patterns if train.pretrain.sparse else None
    rows = [(section.text_rows, train.context)]
    if config.data.recall.fraction > 0:
        rows.append((section.recall_rows, config.data.recall.length))
    return {
        "pretrain": 0 if config.model.init_from else training_flops(config, train.pretrain, first, model),
        "adapt": training_flops(config, train.adapt, config.patterns, model),
        "evaluate": sum(count * forward_flops(model, config.patterns, length) for count, length in rows),
    }


def _matrices(model: ModelConfig) -> int:
    """Numbers in the matrices that every token is multiplied with, the output head among them."""
    blocks = 3 + model.output_gate + model.recurrence  # in_proj
    per_layer = (blocks + 1 + 2 * model.ffn_mult) * model.d_model**2
    return model.layers * per_layer + model.vocab_size * model.d_model
