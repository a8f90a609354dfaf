"""What a model and a run cost in parameters and FLOPs, in closed form: no torch, no weights, any size at once.

FLOPs are those of matrix products (a multiply-add is two), of attention over visible pairs, of selecting them, and of
the recurrence, or of the state and convolution of a mixer that has these; a backward pass costs twice its forward pass.
Not counted: norms, activations, softmax, RoPE, the optimizer. Costs that depend on the pattern alone are in
`ratplus.costs.cost`.
"""

from __future__ import annotations

from dataclasses import replace

from ratplus.config.cell import Config
from ratplus.config.eval import CHOICES
from ratplus.config.model import ModelConfig
from ratplus.config.train import RecipeSection
from ratplus.costs.cost import attention_flops, recurrence_flops, selection_flops
from ratplus.costs.state import mixer_matrices, mixer_vectors, state_flops
from ratplus.data.batches import row_counts
from ratplus.pattern import Pattern, PatternMap

_BACKWARD = 2  # gradients of inputs and of weights


def parameters(model: ModelConfig) -> int:
    """Trainable numbers of a model; an embedding that is the output head too counts once."""
    vectors = 2 * model.d_model  # the two norms of a block
    if not model.attends:
        vectors += mixer_vectors(model)
    vectors += 2 * model.d_head if model.qk_norm else 0
    keys = model.key_heads * model.d_head
    vectors += model.query_width + 2 * keys if model.qkv_bias else 0
    vectors += model.d_model if model.out_bias else 0
    vectors += keys if model.gate_bias is not None else 0
    embedding = 0 if model.tied else model.vocab_size * model.d_model  # apart from the head, which multiplies
    return _matrices(model) + embedding + model.layers * vectors + model.d_model


def forward_flops(model: ModelConfig, patterns: Pattern | PatternMap | None, length: int) -> int:
    """FLOPs of one forward pass over one sequence of `length` tokens; `patterns` None is dense."""
    if not model.attends:
        return 2 * length * _matrices(model) + model.layers * state_flops(model, length)
    heads = model.layers * model.key_heads  # of the recurrence
    if not isinstance(patterns, PatternMap):
        patterns = PatternMap.uniform(patterns or Pattern(), model.layers, model.heads)
    total = 2 * length * _matrices(model) + attention_flops(patterns, length, model.d_head)
    total += selection_flops(patterns, length, model.d_head)
    return total + (recurrence_flops(length, model.d_head, heads) if model.recurrence else 0)


def training_flops(
    config: Config,
    recipe: RecipeSection,
    patterns: PatternMap | None,
    model: ModelConfig,
    rows: list[tuple[int, int]] | None = None,
) -> int:
    """FLOPs of one optimisation run: every step's passes (two with active recurrence learning), forward and backward.

    Args:
        patterns: what the run trains with, if its recipe mixes none; None is dense.
        rows: (how many, tokens of each) of a step; None takes the recipe's rows of text and recall.
    """
    if recipe.mixed:  # each unit has each of them equally often
        maps = [PatternMap.uniform(Pattern.from_label(label), model.layers, model.heads) for label in recipe.mixed]
        plain = replace(recipe, mixed=[], mixed_over="layers")
        return sum(training_flops(config, plain, one, model, rows) for one in maps) // len(maps)
    passes = [patterns]
    if recipe.arl:
        passes.append(recipe.arl_pattern)
    if rows is None:
        counts = row_counts(recipe.batch, config.train.context, config.data.recall)
        rows = list(zip(counts, (config.train.context, config.data.recall.length)))
    batch = sum(count * forward_flops(model, p, n) for p in passes for count, n in rows if count)
    return (1 + _BACKWARD) * recipe.steps * batch


def trained_patterns(config: Config) -> dict[str, PatternMap | None]:
    """What each stage that trains trains with, beside active recurrence learning; None is dense.

    Stages of no steps, and a pretraining in whose place weights are given, train nothing.
    """
    train = config.train
    found = {
        # A recipe may leave the cell's pattern to inference.
        "pretrain": (train.pretrain, config.patterns if train.pretrain.sparse else None),
        "adapt": (train.adapt, _adapted(config)),
        "sft": (train.sft, None if train.sft.dense else config.patterns),
    }
    if config.model.init_from:
        del found["pretrain"]
    return {stage: patterns for stage, (recipe, patterns) in found.items() if recipe.steps}


def _adapted(config: Config) -> PatternMap | None:
    """What adaptation trains with; of mixed patterns one that selects blocks, if any: it holds most memory."""
    recipe, patterns = config.train.adapt, config.patterns
    if recipe.dense:
        return None
    if not recipe.mixed:
        return patterns
    every = [Pattern.from_label(label) for label in recipe.mixed]
    selecting = next((p for p in every if p.data_dependent), every[0])
    return PatternMap.uniform(selecting, patterns.layers, patterns.heads)


def stage_flops(config: Config, vocab_size: int) -> dict[str, int]:
    """FLOPs of each stage of a cell: {"pretrain", "adapt", "evaluate"}, and "sft" where there is one."""
    model = config.model.build(vocab_size, config.train.context)
    train = config.train
    rows = {"sft": [(train.sft.batch, train.sft.length or train.context)]}
    trained = {
        stage: training_flops(config, getattr(train, stage), patterns, model, rows.get(stage))
        for stage, patterns in trained_patterns(config).items()
    }
    return (
        {"pretrain": 0, "adapt": 0}
        | trained
        | {
            "evaluate": sum(
                rows * forward_flops(model, config.patterns, length) for rows, length in evaluation_rows(config)
            ),
        }
    )


def evaluation_rows(config: Config) -> list[tuple[int, int]]:
    """(rows, tokens of each) that an evaluation feeds: held-out text, recall, cloze, needles, recall by position.

    A context of several cloze choices counts with each, though it may be read once. How much the tasks of lm-eval ask
    is known only when they have been loaded: they count with `harness_rows`, at most.
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
    bins = section.positions.bins(context)
    if bins:  # recall rows that end in each bin, and some as long as the context
        asked = section.recall_rows if recall.fraction > 0 else 0
        rows += [(asked, high) for _, high in bins if high >= recall.length]
        rows.append((asked if context > recall.length else 0, context))
    rows.append(harness_rows(config))
    return [(count, length) for count, length in rows if count]


def harness_rows(config: Config) -> tuple[int, int]:
    """(rows, tokens of each) of lm-eval's tasks at most: `limit` items of each, as long as an input may be.

    An item of several choices counts once, a group of tasks as one task. (0, ...) without a limit: not known.
    """
    options = config.eval.harness
    return (options.limit or 0) * len(config.eval.tasks), options.max_length or config.train.context


def _matrices(model: ModelConfig) -> int:
    """Numbers in the matrices that every token is multiplied with, the output head among them."""
    return model.layers * block_matrices(model) + model.vocab_size * model.d_model


def block_matrices(model: ModelConfig) -> int:
    """Numbers in the matrices of one layer."""
    ffn = ffn_matrices(model) * model.ffn_width * model.d_model
    if not model.attends:
        return mixer_matrices(model) + ffn
    queries = (2 + model.output_gate) * model.query_width  # the output projection among them
    keys = (2 + model.recurrence) * model.key_heads * model.d_head  # rows of k, v and the forget gate
    return (queries + keys) * model.d_model + ffn


def ffn_matrices(model: ModelConfig) -> int:
    """Matrices of ffn_width x d_model in one layer."""
    return 3 if model.ffn == "swiglu" else 2
