"""The stages of a cell and their ids: what is done under which name; torch-free."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ratplus.checkpoint.start import weights_of
from ratplus.config.cell import Config
from ratplus.config.train import SFT_VERSION, RecipeSection
from ratplus.data.recall import RecallTask
from ratplus.pattern import Pattern, PatternMap
from ratplus.records.record import stage_id

# Keys of the model that came later, with the value that every model before them had.
LATER_KEYS = {
    "recurrence_chunk": None, "kv_heads": None,
    "rope_scaling": "none", "rope_factor": 1.0, "rope_original": None, "rope_low": None, "rope_high": None,
    "query_heads": None, "ffn": "gelu", "ffn_size": None, "qkv_bias": False, "out_bias": False, "qk_norm": False,
    "gate_bias": None, "tied": True, "mixer": "attention", "d_state": None,
}  # fmt: skip


@dataclass
class Stage:
    """One stage of a cell: its name, the config that decides its result, and its parent's id."""

    name: str
    config: dict
    parent: str | None

    @property
    def id(self) -> str:
        return stage_id(self.name, self.config, self.parent)

    def folder(self, root: Path) -> Path:
        return Path(root) / self.name / self.id


@dataclass
class Plan:
    """The stages of one cell, parent first; torch-free, so that a sweep can be listed in no time."""

    pretrain: Stage
    adapt: Stage
    sft: Stage | None
    evaluate: Stage
    vocab_size: int

    def __iter__(self):
        return iter(stage for stage in (self.pretrain, self.adapt, self.sft, self.evaluate) if stage is not None)

    @property
    def trained(self) -> Stage:
        """The stage whose model is evaluated."""
        return self.sft or self.adapt


def plan(config: Config, corpus_identity: dict, text_vocab: int) -> Plan:
    """The stages of a cell with their ids. Only what decides results enters: no paths, devices or worker counts."""
    recall = config.data.recall
    data = {**corpus_identity, "recall": asdict(recall) if recall.fraction > 0 else None}
    vocab = RecallTask.of(recall, text_vocab).vocab_size if recall.fraction > 0 else text_vocab
    given, weights = config.model.init_from, None
    if given:
        weights, vocab = weights_of(config, text_vocab, vocab)  # the embedding may have more rows than the data has ids
    unnamed = ("name", "init_from", "init_std") if given else ("name", "init_from")
    shape = {k: v for k, v in asdict(config.model).items() if k not in unnamed} | {"vocab_size": vocab}
    # What is as it was before the key existed keeps its id.
    shape = {k: v for k, v in shape.items() if not (k in LATER_KEYS and v == LATER_KEYS[k])}
    common = {"data": data, "context": config.train.context, "seed": config.seed}
    patterns = config.patterns.to_dict()
    dense = PatternMap.uniform(Pattern(), config.patterns.layers, config.patterns.heads).to_dict()

    def recipe(section: RecipeSection) -> dict:
        # Rows at a time change only the order of float sums. Ids from when they counted hold this for the whole batch.
        plain = asdict(section) | {"micro_batch": section.batch}
        if not section.arl:
            plain = {k: v for k, v in plain.items() if not k.startswith("arl_")}
        # What is as it was before the key existed keeps its id; so does a model that has no such gates.
        plain = {k: v for k, v in plain.items() if k != "sparse" or v}
        plain = {k: v for k, v in plain.items() if k != "questions" or v != 1}
        gates = {"gate_lr": config.model.recurrence, "gate_bias_lr": config.model.gate_bias is not None}
        plain = {k: v for k, v in plain.items() if k not in gates or (gates[k] and v is not None)}
        if not section.mixed:
            del plain["mixed"], plain["mixed_over"]
        del plain["dense"]  # the stage's pattern says it
        return plain | {"precision": config.train.precision}

    shared = {"pattern": patterns} if config.train.pretrain.sparse else {}
    pretrain = Stage("pretrain", {**common, **shared, "model": shape, "recipe": recipe(config.train.pretrain)}, None)
    if given:
        facts = {"model": shape, "context": config.train.context, "weights": weights}
        pretrain = Stage("pretrain", facts, None)
    adaptation, fine = config.train.adapt, config.train.sft
    # Mixed patterns are in the recipe, and whatever the cell's is does not matter: all cells share the stage.
    trained = dense if adaptation.dense or adaptation.mixed else patterns
    adapt = Stage("adapt", {**common, "pattern": trained, "recipe": recipe(adaptation)}, parent=pretrain.id)
    sft = None
    if fine.steps:
        of_split = {"length": fine.length or config.train.context, "version": SFT_VERSION}
        trained = dense if fine.dense else patterns
        sft = Stage("sft", {**common, "pattern": trained, "recipe": recipe(fine) | of_split}, parent=adapt.id)
    asked = config.eval.science(config.train.context)
    evaluate = Stage("evaluate", {**common, "pattern": patterns, "eval": asked}, parent=(sft or adapt).id)
    return Plan(pretrain, adapt, sft, evaluate, vocab)
