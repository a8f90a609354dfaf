"""docs/reference/keys.md, generated: every key that a user can set, from the dataclasses that hold it.

Each field of a config dataclass is followed by a docstring: what it is, its unit, the reason of its default and, as the
last sentence, what is allowed. `make docs` writes the page; a test compares the page with what would be written now.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ratplus.config.cell import Config
from ratplus.config.search import SearchSection
from ratplus.config.train import RecipeSection, SftSection
from ratplus.records.atomic import write_atomically
from ratplus.sweeps.define import grid
from ratplus.sweeps.define.compose import compose_one

STAGES = ("pretrain", "adapt", "sft")

_INTRO = """\
# Keys

Written by `make docs` from the dataclasses in `ratplus/config/`: change those, not this page. Every key is set on the
command line (`train.pretrain.steps=200`) or in a YAML file of `conf/` or of your own (`--config-dir`).

*Default* is what a command without overrides uses, which chooses
`{choices}`.
Where the dataclass alone, as Python code makes it, has another default, it follows in brackets. Other choices of a
group set other values: see `conf/<group>/<choice>.yaml`.
Numbers are finite. An impossible value ends the command with one line that names the key, before anything starts.
"""


@dataclass(frozen=True)
class Key:
    """One key that a user can set.

    Args:
        name: as on the command line; `train.<stage>.lr` stands for the same key of several stages.
        type: in YAML's words.
        default: what a run without overrides has, in words.
        allowed: what is let through, in words; "" where the type says it all.
        text: what it is, its unit and its default's reason.
    """

    name: str
    type: str
    default: str
    allowed: str
    text: str


def field_texts(section: type) -> dict[str, str]:
    """{field: its docstring, in one line} of a dataclass and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(tree, ast.ClassDef)
        for statement, following in pairwise(tree.body):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                found[ast.unparse(statement.target)] = " ".join(ast.literal_eval(following.value).split())
    return found


def tables() -> Iterator[tuple[str, str, list[Key]]]:
    """(heading, what the section is, its keys), in the order of the dataclasses."""
    composed = compose_one([])
    yield from _tables("", Config, asdict(composed.config))
    sweep = [_key(f"sweep.{name}", "any", composed.config.sweep[name], text) for name, text in grid.KEYS.items()]
    yield "sweep", "`sweep=`: which cells a sweep has. Files of yours may say the same: docs/sweeps.md.", sweep


def _tables(prefix: str, section: Any, defaults: dict) -> Iterator[tuple[str, str, list[Key]]]:
    texts, bare = field_texts(section), section()
    plain = [f for f in fields(section) if not is_dataclass(getattr(bare, f.name)) and prefix + f.name != "sweep"]
    keys = [_key(prefix + f.name, f.type, defaults[f.name], texts[f.name], getattr(bare, f.name)) for f in plain]
    yield prefix[:-1] or "Of the command as a whole", _about(section), keys
    for f in fields(section):
        name = prefix + f.name
        if name == "train.pretrain":
            yield from _stage_tables(defaults)
        elif is_dataclass(getattr(bare, f.name)) and name not in {f"train.{stage}" for stage in STAGES}:
            yield from _tables(f"{name}.", type(getattr(bare, f.name)), defaults[f.name])


def _of_search() -> tuple[str, str, list[Key]]:
    """The keys of `ratplus search`, which are words of that command alone."""
    defaults, texts = SearchSection(model="ID"), field_texts(SearchSection)
    keys = [_key(f.name, f.type, getattr(defaults, f.name), texts[f.name]) for f in fields(SearchSection)]
    return "ratplus search", f"{_about(SearchSection)} Lists are written with commas.", keys


def _stage_tables(train: dict) -> Iterator[tuple[str, str, list[Key]]]:
    """The keys that all training stages have, once; then those of fine-tuning alone."""
    general, of_sft = field_texts(RecipeSection), field_texts(SftSection)
    keys = []
    for f in fields(RecipeSection):
        text, allowed = _split(general[f.name])
        if of_sft[f.name] != general[f.name]:
            text += f" In sft: {_split(of_sft[f.name])[0]}"
        values = {stage: _value(train[stage][f.name]) for stage in STAGES}
        same = len(set(values.values())) == 1
        default = values["pretrain"] if same else ", ".join(f"{stage} {value}" for stage, value in values.items())
        keys.append(Key(f"train.<stage>.{f.name}", _type(f.type), default, allowed, text))
    yield "train.pretrain, train.adapt, train.sft", _about(RecipeSection), keys
    own = [f for f in fields(SftSection) if f.name not in general]
    keys = [_key(f"train.sft.{f.name}", f.type, train["sft"][f.name], of_sft[f.name]) for f in own]
    yield "train.sft", _about(SftSection), keys


def _key(name: str, annotation: Any, default, text: str, bare=None) -> Key:
    said, allowed = _split(text)
    value = _value(default)
    if bare is not None and _value(bare) != value:
        value += f" ({_value(bare)})"
    return Key(name, _type(annotation), value, allowed, said)


def _split(text: str) -> tuple[str, str]:
    """(all but the last sentence, what is allowed) of a field's docstring."""
    said, _, allowed = text.partition(" Allowed: ")
    return said, allowed.removesuffix(".")


def _value(value) -> str:
    """A default as YAML would have it."""
    return re.sub(r"e-0", "e-", json.dumps(value))


def _type(annotation: Any) -> str:
    """An annotation, which is a text in these modules, in YAML's words."""
    words = {
        "int": "whole number",
        "float": "number",
        "bool": "true or false",
        "str": "text",
        "None": "null",
        "dict": "mapping",
    }
    kinds = [words.get(name := part.partition("[")[0], name) for part in annotation.split(" | ")]
    return "any" if kinds == ["Any"] else " or ".join(kinds)


def _about(section: type) -> str:
    return (section.__doc__ or "").partition("\n\n")[0].strip()


def page() -> str:
    """The whole page, as Markdown."""
    choices = " ".join(f"{group}={choice}" for group, choice in compose_one([]).choices.items() if choice)
    parts = [_INTRO.format(choices=choices)]
    for heading, about, keys in [*tables(), _of_search()]:
        parts.append(f"## {heading}\n\n{about}\n")
        parts.append("| key | type | default | allowed | what it is |\n|---|---|---|---|---|")
        cells = [(f"`{k.name}`", k.type, f"`{k.default}`", k.allowed, k.text) for k in keys]
        parts += ["| " + " | ".join(text.replace("|", r"\|") for text in row) + " |" for row in cells]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    write_atomically(Path(sys.argv[1]), page())
