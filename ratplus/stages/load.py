"""`ratplus.load`: a model by its folder or by the id of a stage, with its tokenizer and the pattern it was made for."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ratplus.checkpoint.facts import (
    CONFIG_FILE,
    CheckpointError,
    default_patterns,
    tokenizer_facts,
)
from ratplus.checkpoint.llama.words import ADAPTER_FILE
from ratplus.checkpoint.targets import is_model_folder
from ratplus.config.data import DataSection, RecallSection
from ratplus.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from ratplus.pattern import Pattern, PatternMap
from ratplus.records.find_stage import find_stage
from ratplus.records.manifest import MANIFEST_FILE, Entry, evaluations, read_manifest
from ratplus.records.record import STAGES, TRAINING, is_id

if TYPE_CHECKING:
    from ratplus.model import RATPlus


class Loaded(NamedTuple):
    """A model and what belongs to it.

    Attributes:
        model: on the CPU, in float32, in evaluation mode.
        tokenizer: that it was trained with: encode(text), decode(ids), eos_id, vocab_size. None where neither the
            folder nor its sweep says which one that was.
        patterns: that it was adapted to, evaluated under (of the id of an evaluation) or, if imported, trained with;
            dense where nothing else is known.
    """

    model: RATPlus
    tokenizer: Tokenizer | None
    patterns: PatternMap


def load(place: str | Path, sweep: str | Path | None = None, tokenizer: str | Path | Tokenizer | None = None) -> Loaded:
    """A model from a stage, an imported folder, an export, or a Hugging Face folder of the Llama family.

    Args:
        place: the folder, or the id of a stage (or how it begins).
        sweep: folder of the sweep that the id belongs to; None looks through outputs/.
        tokenizer: in place of the model's own: `bytes`, a file, a folder, or a tokenizer.

    Raises:
        CheckpointError: no model there, a damaged one, or a tokenizer with more ids than the model has.
        NoSuchStage, RecordError: no stage of such an id, or several.
        TokenizerError: the tokenizer's file is damaged, or its library is not installed.
    """
    found = _find(place, sweep)
    if tokenizer is None:
        known: Tokenizer | None = _tokenizer_of(found)
    elif isinstance(tokenizer, (str, Path)):
        known = load_tokenizer(tokenizer)
    else:
        known = tokenizer
    model, own = _model_of(found.folder, found.entry is not None)
    if found.entry is not None and found.stage == "evaluate":
        own = PatternMap.from_dict(found.entry["pattern"], model.config.layers, model.config.heads)
    if known is not None and known.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"tokenizer={known.name}: it has {known.vocab_size} tokens, the model's vocabulary only "
            f"{model.config.vocab_size}; give the tokenizer that the model was trained with"
        )
    return Loaded(model.eval(), known, own or model.resolve_patterns(Pattern()))


class _Found(NamedTuple):
    """A folder that holds a model; of a stage that still lies in its sweep also what the sweep says of it."""

    folder: Path
    stage: str | None = None
    entry: Entry | None = None


def _find(place: str | Path, sweep: str | Path | None) -> _Found:
    folder = Path(place)
    if folder.is_dir():
        whole = folder.resolve()
        stage, root = whole.parent.name, whole.parent.parent
        if stage in STAGES and is_id(whole.name) and (root / MANIFEST_FILE).is_file():
            return _of_stage(root, stage, whole.name, folder)
        if not any((folder / name).exists() for name in (CONFIG_FILE, ADAPTER_FILE)):
            raise CheckpointError(f"model={place}: not a model folder ({CONFIG_FILE} is missing)")
        return _Found(folder)
    if folder.exists():
        how = f"ratplus import {place} NEW_FOLDER"
        raise CheckpointError(f"model={place}: is a file; make a model folder of it with: {how}")
    if not re.fullmatch(r"[0-9a-f]{1,12}", str(place)):
        raise CheckpointError(f"model={place}: no such folder, and not an id of a stage")
    told = f"model={place}", "give another folder with sweep="
    root, stage, stage_id = find_stage(str(place), None if sweep is None else str(sweep), *told)
    return _of_stage(root, stage, stage_id, root / stage / stage_id)


def _of_stage(root: Path, stage: str, stage_id: str, folder: Path) -> _Found:
    """The folder of a stage's model: an evaluation has none of its own, what it evaluated lies with the one before."""
    cells = evaluations(read_manifest(root)["cells"])
    entry = next((c for c in cells if c["stages"].get(stage) == stage_id), None)
    if stage == "evaluate" and entry is not None:
        trained = next(s for s in reversed(TRAINING) if s in entry["stages"])
        folder = root / trained / entry["stages"][trained]
    if not (folder / CONFIG_FILE).exists():
        status = shlex.join(["ratplus", "status", str(root)])
        raise CheckpointError(f"model={stage_id}: {folder} has no trained model yet; `{status}` says why")
    return _Found(folder, stage, entry)


def _model_of(folder: Path, in_sweep: bool) -> tuple[RATPlus, PatternMap | None]:
    """The model of a folder of any kind that we read, and its own pattern."""
    from ratplus import checkpoint
    from ratplus.checkpoint.adopt import read_foreign

    if is_model_folder(folder) or in_sweep:
        return checkpoint.load(folder), default_patterns(folder)
    found = read_foreign(folder)
    return found.model(), found.patterns


def _tokenizer_of(found: _Found) -> Tokenizer | None:
    from ratplus.checkpoint.own_tokenizer import own_tokenizer

    own = own_tokenizer(found.folder)
    if own is not None or found.entry is None or tokenizer_facts(found.folder) is not None:
        return own
    # A stage of before tokenizers went along: its sweep says which corpus it read.
    if found.entry["corpus"].get("tokenizer") == ByteTokenizer.name:
        return ByteTokenizer()
    from ratplus.data.corpus import CorpusError
    from ratplus.data.sources import made_corpus

    try:
        return made_corpus(_data_of(found.entry), found.entry["corpus"]).tokenizer()
    except CorpusError as error:
        raise CheckpointError(
            f"model={found.folder}: its tokenizer stands with its corpus: {error}; or give tokenizer="
        ) from None


def _data_of(entry: Entry) -> DataSection:
    """The data section of a cell. A manifest may be a stranger's: what it names is not prepared here."""
    plain: dict[str, Any] = entry["config"].get("data") or {}
    try:
        known = {f.name for f in fields(DataSection)}
        given: dict[str, Any] = {k: v for k, v in plain.items() if k in known}
        given["recall"] = RecallSection(**plain.get("recall", {}))
        return DataSection(**given)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{MANIFEST_FILE}: the data section of cell {entry['id']} is damaged ({error})") from None
