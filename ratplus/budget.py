"""What a model and a run cost in parameters and FLOPs, in closed form: no torch, no weights, any size at once.

FLOPs are those of matrix products (a multiply-add is two), of attention over visible pairs, and of the recurrence; a
backward pass costs twice its forward pass. Not counted: norms, activations, softmax, RoPE, the optimizer. Costs that
depend on the pattern alone are in `ratplus.cost`.
"""

from __future__ import annotations

from ratplus.config import Config, ModelConfig, RecipeSection
from ratplus.cost import attention_flops, recurrence_flops
from ratplus.data.batches import row_counts
from ratplus.evaluation.cloze import CHOICES
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
    train = config.train
    first = config.patterns if train.pretrain.sparse else None
    return {
        "pretrain": 0 if config.model.init_from else training_flops(config, train.pretrain, first, model),
        "adapt": training_flops(config, train.adapt, config.patterns, model),
        "evaluate": sum(
            rows * forward_flops(model, config.patterns, length) for rows, length in evaluation_rows(config)
        ),
    }


def evaluation_rows(config: Config) -> list[tuple[int, int]]:
    """(rows, tokens of each) that an evaluation feeds: held-out text, recall, cloze, needles.

    A context of several cloze choices counts with each, though it may be read once. The tasks of lm-eval are not
    among them: how many questions they ask, and how long, is known only when they have been loaded.
    """
    section, context, recall = config.eval, config.train.context, config.data.recall
    before, continuation = section.cloze.shape(context)
    choices = CHOICES * section.cloze.items
    rows = [
        (section.text_rows, context),
        (section.recall_rows if recall.fraction > 0 else 0, recall.length),
        # Each choice is scored after its context, and after the context's last token alone.
        (choices, before + continuation),
        (choices, 1 + continuation),
        (section.niah.samples * len(section.niah.tasks), section.niah.length or context),
    ]
    return [(count, length) for count, length in rows if count]


def _matrices(model: ModelConfig) -> int:
    """Numbers in the matrices that every token is multiplied with, the output head among them."""
    return model.layers * block_matrices(model) + model.vocab_size * model.d_model


def block_matrices(model: ModelConfig) -> int:
    """Numbers in the matrices of one layer."""
    blocks = 3 + model.output_gate + model.recurrence  # in_proj
    return (blocks + 1 + 2 * model.ffn_mult) * model.d_model**2
