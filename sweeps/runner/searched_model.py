"""The model of `ratplus search`: a stage with its sweep's data, or a model folder with data that is named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ratplus.checkpoint.facts import CheckpointError, read_facts, read_start
from ratplus.checkpoint.start import weights_of
from ratplus.config.cell import Config
from ratplus.config.model import ModelConfig
from ratplus.config.search import SearchSection
from ratplus.data.corpus import Corpus, CorpusError
from ratplus.data.recall import RecallTask
from ratplus.data.sources import corpus_of, made_corpus
from ratplus.records.find_stage import find_stage
from ratplus.records.manifest import MANIFEST_FILE, evaluations, read_manifest
from ratplus.records.record import TRAINING
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.manifest import cell_config
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.typed import typed


@dataclass(frozen=True)
class Searched:
    """What is searched.

    Attributes:
        name: for folders and titles.
        folder: of the weights.
        weights: their SHA-256.
        shape: with `max_len` as the model is used, which scaled RoPE may make longer than it was trained.
        recall: the task that the model was trained on, if it was.
    """

    name: str
    folder: Path
    weights: str
    shape: ModelConfig
    config: Config
    corpus: Corpus
    recall: RecallTask | None


def locate(section: SearchSection, overrides: list[str]) -> Searched:
    """Find the model and its data.

    Raises:
        UsageError: no such model, overrides of what its sweep decides, or a vocabulary that is another.
        CheckpointError, CorpusError, TokenizerError: as they say.
    """
    assert section.model is not None
    folder = Path(section.model)
    if not folder.exists():
        if not re.fullmatch(r"[0-9a-f]{1,12}", section.model):
            raise UsageError(f"model={section.model}: no such folder, and not an id of a stage")
        sweep, stage, stage_id = find_stage(section.model, section.sweep, "search", "give another folder with sweep=")
        return _of_stage(section, overrides, sweep, stage, stage_id)
    # The manifest of a stage's folder stands two folders above: <sweep>/<stage>/<id>.
    sweep = folder.resolve().parents[1]
    if (sweep / MANIFEST_FILE).is_file() and folder.resolve().parent.name in (*TRAINING, "evaluate"):
        return _of_stage(section, overrides, sweep, folder.resolve().parent.name, folder.resolve().name)
    return _of_folder(section, overrides, folder)


def _of_stage(section: SearchSection, overrides: list[str], sweep: Path, stage: str, stage_id: str) -> Searched:
    if overrides:
        raise UsageError(
            f"search: {overrides[0]}: model={section.model} is a stage of {sweep}, whose config says what it reads; "
            "leave the word out, or search a model folder"
        )
    cells = evaluations(read_manifest(sweep)["cells"])
    cell = next((c for c in cells if c["stages"].get(stage) == stage_id), None)
    if cell is None:
        raise UsageError(f"model={section.model}: {sweep / MANIFEST_FILE} knows no such stage")
    if stage == "evaluate":
        # An evaluation has no weights of its own: those that it evaluated lie with the stage before it.
        stage = next(name for name in reversed(TRAINING) if name in cell["stages"])
        stage_id = cell["stages"][stage]
    folder = sweep / stage / stage_id
    try:
        shape, weights = read_facts(folder)
    except CheckpointError as error:
        raise UsageError(f"model={section.model}: no trained model yet: {error}") from None
    config = typed(cell_config(cell))
    try:
        corpus = made_corpus(config.data, cell["corpus"])
    except CorpusError as error:
        raise UsageError(f"model={section.model}: {error}") from None
    name = f"{config.model.name}-{stage}-{stage_id}"
    return Searched(name, folder, weights, shape, config, corpus, _recall(config, corpus))


def _of_folder(section: SearchSection, overrides: list[str], folder: Path) -> Searched:
    try:
        shape, _ = read_start(folder)
    except CheckpointError as error:
        raise UsageError(f"model: {error}") from None
    from ratplus.sweeps.define.grid import override_value

    words = [f"model.init_from={override_value(str(folder))}"]
    if not any(word.startswith("train.context=") for word in overrides):
        words.append(f"train.context={shape.max_len}")
    config = compose_one([*words, *overrides]).config
    corpus = corpus_of(config.data)
    recall = _recall(config, corpus)
    weights, rows = weights_of(config, corpus.vocab_size, recall.vocab_size if recall else corpus.vocab_size)
    used = config.model.build(rows, config.train.context)
    return Searched(folder.resolve().name, folder, weights, used, config, corpus, recall)


def _recall(config: Config, corpus: Corpus) -> RecallTask | None:
    section = config.data.recall
    return RecallTask.of(section, corpus.vocab_size) if section.fraction > 0 else None
