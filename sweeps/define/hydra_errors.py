"""One clear line for each error of Hydra and OmegaConf: which key, what was given, what is allowed."""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, fields
from pathlib import Path

import yaml
from omegaconf.errors import OmegaConfBaseException

from ratplus.config.cell import Config
from ratplus.records.lines import first_line
from ratplus.records.record import flatten

# What an override on the command line may begin with.
_SECTIONS = {f.name for f in fields(Config)} | {"experiment"}


def hydra_line(error: Exception) -> str:
    """Say in one line what an error of Hydra means for the user."""
    text = str(error)
    if found := re.search(r"In 'experiment/([^']+)': .*\nKey 'experiment' not in", text):
        return f"experiment={found[1]}: its file must begin with the line `# @package _global_`"
    if found := re.search(r"Could not find '([^']+)'(?:\s+Available options in '[^']+':\n((?:\t.*\n?)+))?", text):
        group, _, choice = found[1].rpartition("/")
        options = ", ".join((found[2] or "").split())
        return f"{group}={choice}: no such choice" + (f"; available: {options}" if options else "")
    found = re.search(r"Could not override '(\w+)'.*\n.*use \+(\S.*)", text)
    if found and found[1] in _SECTIONS:
        return f"{found[2]}: holds a key that {found[1]} has not; give each as {found[1]}.key=value"
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1])
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OmegaConfBaseException):
            return omegaconf_line(cause)
    return " ".join(text.partition("See https")[0].split())


def omegaconf_line(error: OmegaConfBaseException) -> str:
    """Say in one line what an error of OmegaConf means for the user."""
    first = first_line(error)
    key = getattr(error, "full_key", None) or ""
    if "not in" in first and key:
        found = re.match(r"Key '([^']+)'", first)
        # The whole key, or that of the section alone.
        return _unknown_key(f"{key}.{found[1]}" if found is not None and key in _SECTIONS and found[1] != key else key)
    if found := re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", first):
        kinds = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
        return f"{key}: got {found[1]!r}; it must be {kinds.get(found[2], found[2])}"
    if found := re.match(r"Value '(.*)' is not a valid bool", first):
        return f"{key}: got {found[1]!r}; it must be true or false"
    if found := re.match(r"Cannot convert '(\w+)' to string: '(.*)'$", first):
        kind = {"ListConfig": "a list", "DictConfig": "a mapping"}.get(found[1], found[1])
        return f"{key}: got {kind} ({found[2]}); it must be one text, quoted if it holds brackets: '{key}=\"...\"'"
    return f"{key}: {first}" if key else first


def config_file_line(error: Exception, config_dir: str | None, words: tuple[str, ...]) -> str | None:
    """Say in one line which file of the user's config folder made Hydra fail; None where the error has another cause.

    Args:
        config_dir: the user's folder; None without one.
        words: the overrides that chose what was composed.
    """
    if isinstance(error, yaml.YAMLError):
        return _yaml_line(error)
    foreign = isinstance(
        error, (UnicodeDecodeError, RecursionError, AttributeError, TypeError, AssertionError, OSError)
    )
    if config_dir is None or not (foreign or "Merge error" in str(error) or "must be a dict" in str(error)):
        return None
    chosen = [word.lstrip("+").replace("=", "/") + ".yaml" for word in words]
    found = sorted(Path(config_dir).rglob("*.yaml"), key=lambda p: (not str(p).endswith(tuple(chosen)), str(p)))
    for path in found:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as fault:
            return f"{path}: not UTF-8 text (byte {fault.start}: {fault.reason}); save it as UTF-8"
        except yaml.YAMLError as fault:
            return _yaml_line(fault, path)
        except RecursionError:
            return f"{path}: nested too deep for YAML to read"
        except OSError as fault:
            return f"{path}: cannot be read ({fault.strerror})"
        if content is not None and not isinstance(content, dict):
            return f"{path}: holds a {type(content).__name__}; a config file is a mapping, lines of `key: value`"
    return None


def _yaml_line(error: yaml.YAMLError, path: Path | None = None) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    name = path or (mark.name if mark else getattr(error, "name", "a config file"))
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if "\\t" in problem:
        problem = "a tab, where YAML takes only spaces"
    return f"{name}{place}: not YAML ({' '.join(problem.split())})"


def _unknown_key(key: str) -> str:
    key = key.lstrip("+~")
    known = list(flatten(asdict(Config())))
    parent, _, name = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent] if parent else sorted(_SECTIONS)
    # A typo in the last word is likelier than a wrong group.
    names = [k.rpartition(".")[2] for k in siblings]
    close = [f"{parent}.{n}".lstrip(".") for n in difflib.get_close_matches(name, names, n=1, cutoff=0.6)]
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    if close:
        return f"{key}: unknown key; did you mean {close[0]}?"
    return f"{key}: unknown key; allowed: {', '.join(siblings or sorted(_SECTIONS))}"
