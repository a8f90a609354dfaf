"""`model.init_from=FOLDER` without a model group: the shape and the name are the folder's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ratplus.checkpoint.facts import CheckpointError, read_start
from ratplus.checkpoint.start import GATE_BIAS

# Decided by the data and by train.context, not by the folder.
_NOT_SHAPE = ("vocab_size", "max_len")


def take_shape(plain: dict, given: set[str]) -> None:
    """Give the section `model` of a composed config the shape of the folder that `model.init_from` names.

    A model group that a word chooses stays as it is, and so does every key that a word sets: where they differ from the
    folder, planning the cell says so. A folder that cannot be read is left to that as well.

    Args:
        plain: the composed config, which is changed in place.
        given: keys of the words.
    """
    model = plain.get("model")
    if not isinstance(model, dict) or "model" in given:
        return
    folder = model.get("init_from")
    if not isinstance(folder, str):
        return
    try:
        config, _ = read_start(Path(folder))
    except CheckpointError:
        return
    shape = {key: value for key, value in asdict(config).items() if key not in _NOT_SHAPE}
    if "model.rope_scaling" in given:
        # Another scaling has settings of its own, which the folder's would contradict.
        shape = {key: value for key, value in shape.items() if not key.startswith("rope_") or key == "rope_base"}
    if "model.ffn_size" in given or "model.ffn_mult" in given:
        shape = {key: value for key, value in shape.items() if key not in ("ffn_size", "ffn_mult")}
    shape["name"] = Path(folder).resolve().name
    if "model.recurrence" in given and model["recurrence"] is True and not config.recurrence:
        # The model of the folder with a recurrence beside: gates need a bias, and tables another name.
        shape |= {"gate_bias": GATE_BIAS, "name": f"{shape['name']}-retrofit"}
    model.update({key: value for key, value in shape.items() if f"model.{key}" not in given})
