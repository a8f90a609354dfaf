"""lm-evaluation-harness: `HarnessLM`, and any of its tasks, or a local YAML, as a suite of a cell.

lm-eval is imported only here, and only inside functions: everything else of ratplus works without it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from ratplus.config.eval import HarnessSection, is_task_file
from ratplus.evaluation.metrics import metric
from ratplus.records.lines import first_line
from ratplus.records.record import Metric

if TYPE_CHECKING:
    from ratplus.evaluation.harness_model import Adapter

# lm-eval draws so many samples for a standard error that has no formula, such as perplexity's.
_BOOTSTRAP = 100


class MissingExtra(ValueError, ImportError):
    """A package that a suite needs is not installed; the message names the extra that brings it."""


class TaskError(ValueError):
    """A task is unknown, or cannot be loaded."""


def require_harness(what: str) -> None:
    """Raise MissingExtra if lm-eval is not installed; does not import it."""
    if find_spec("lm_eval") is None:
        raise MissingExtra(f"{what} needs lm-evaluation-harness; install the extra: pip install 'ratplus[eval]'")


@lru_cache(maxsize=1)
def harness_class() -> type:
    """`ratplus.evaluation.HarnessLM`: `Adapter` as a model of lm-eval, for its `evaluate` and `simple_evaluate`.

    Raises:
        MissingExtra: lm-eval is not installed.
    """
    require_harness("ratplus.evaluation.HarnessLM")
    from lm_eval.api.model import TemplateLM

    from ratplus.evaluation.harness_model import Adapter

    class HarnessLM(Adapter, TemplateLM):
        __doc__ = Adapter.__doc__

        @property
        def device(self):
            return self.model.embed.weight.device

    HarnessLM.__module__ = "ratplus.evaluation"
    HarnessLM.__qualname__ = "HarnessLM"
    return HarnessLM


# ---- tasks --------------------------------------------------------------------------------------------------------


def check_tasks(tasks: list) -> None:
    """Refuse tasks that cannot be run, before anything is trained for them.

    Raises:
        MissingExtra: lm-eval is not installed.
        TaskError: an unknown name (with the closest ones), or no such file.
    """
    if not tasks:
        return
    require_harness("eval.tasks")
    for task in tasks:
        name = task["task"] if isinstance(task, dict) else task
        if is_task_file(name):
            if not Path(name).is_file():
                raise TaskError(f"eval.tasks: {name}: no such file")
        elif name not in _shipped():
            close = difflib.get_close_matches(name, _shipped())
            hint = f"did you mean {', '.join(close)}?" if close else "see `lm-eval ls tasks`"
            raise TaskError(f"eval.tasks: {name}: lm-eval {version('lm_eval')} has no such task; {hint}")


@lru_cache(maxsize=4)
def _load(tasks_json: str, fewshot: int | None) -> dict:
    """lm-eval's tasks; kept, since loading data sets takes longer than scoring small models."""
    from lm_eval.tasks import TaskManager

    tasks = json.loads(tasks_json)
    specs, folders, everything = [], [], False
    for task in tasks:
        name = task["task"] if isinstance(task, dict) else task
        if is_task_file(name):
            folders.append(os.path.dirname(os.path.realpath(name)))
            name = _declared_name(Path(name))
        else:
            path = _shipped()[name]
            # A group or tag may have members anywhere: only then the whole index, which takes ten seconds.
            everything |= path is None
            folders += [] if path is None else [str(path.parent)]
        rest = {k: v for k, v in task.items() if k != "task"} if isinstance(task, dict) else {}
        specs.append((name, rest))
    manager = TaskManager(include_defaults=everything, include_path=list(dict.fromkeys(folders)))
    loaded: dict = {"tasks": {}, "groups": {}, "group_map": {}}
    for name, rest in specs:
        # Other generation settings add to the task's own; other keys replace its own.
        settings = rest.pop("generation_kwargs", None)
        try:
            if rest:
                group = manager.load([{"group": f"with_{name}", "task": [{"task": name, **rest}]}])
                found = {"tasks": group["tasks"], "groups": {}, "group_map": {}}
            else:
                found = manager.load([name])
        except ImportError as error:
            raise MissingExtra(_missing_package(name, error)) from None
        except Exception as error:  # of data sets, the hub, YAML: whatever it is, it belongs to this task
            raise TaskError(_cannot_load(name, error)) from None
        for task in found["tasks"].values():
            if fewshot is not None:
                task.set_config("num_fewshot", fewshot)
            if settings:
                task.set_config("generation_kwargs", dict(settings), update=True)
            task.set_fewshot_seed(seed=1234)
        for part in loaded:
            loaded[part] |= found[part]
    return loaded


def run_tasks(lm: Adapter, tasks: list, section: HarnessSection) -> tuple[dict, list[dict], dict]:
    """(metrics, samples, facts) of lm-eval tasks.

    Metrics are `<task>_<metric>`, with the filter's name at the end if the task has several; a sample has the task's
    metrics of one document; facts are each task's version, the number of its documents and a hash of its prompts.

    Raises:
        MissingExtra, TaskError: as `check_tasks`; or a data set is not there.
        ValueError: an input that does not fit, with truncation off.
        BadLogits: NaN or infinite logits.
    """
    check_tasks(tasks)
    # A pool of processes, each with a copy of the model, is no way to draw a hundred times.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    cut_before = lm.truncated
    with _quiet():
        import lm_eval

        loaded = _load(json.dumps(tasks, sort_keys=True), section.fewshot)
        found = lm_eval.evaluate(lm, loaded, limit=section.limit, bootstrap_iters=_BOOTSTRAP, log_samples=True)
    samples = [row for task, rows in found["samples"].items() for row in _samples(task, rows)]
    metrics = {}
    for group in ("results", "groups"):
        for task, values in (found.get(group) or {}).items():
            metrics |= _metrics(task, values, _count(task, found))
    facts = {
        task: {
            "version": found["versions"].get(task), "samples": _count(task, found),
            "fewshot": found["n-shot"].get(task),
            "prompts_sha256": _hash([row["prompt_hash"] for row in rows]),
            "data_sha256": _hash([row["doc_hash"] for row in rows]),
        }
        for task, rows in found["samples"].items()
    }  # fmt: skip
    facts["lm_eval"] = {"version": version("lm_eval"), "truncated_contexts": lm.truncated - cut_before}
    return metrics, samples, facts


def _metrics(task: str, values: dict, count: int) -> dict[str, Metric]:
    metrics = {}
    filters = {key.partition(",")[2] for key in values if "," in key}
    for key, value in values.items():
        name, comma, which = key.partition(",")
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not comma or name.endswith("_stderr") or not number:
            continue
        if name.isdigit() and value == -1:
            continue  # what RULER says of a length that it was not asked for
        error = values.get(f"{name}_stderr,{which}")
        error = error if isinstance(error, (int, float)) and math.isfinite(error) else None
        ending = f"_{which}" if len(filters) > 1 else ""
        metrics[f"{task}_{name}{ending}"] = metric(value, error, count)
    return metrics


def _samples(task: str, rows: list[dict]) -> list[dict]:
    found = []
    for row in rows:
        scores = {}
        for name in row["metrics"]:
            value = row[name]
            # Some metrics (perplexities) keep (value, weight) pairs; text and lists of texts are answers, not scores.
            if isinstance(value, (int, float)):
                scores[name] = value
            elif isinstance(value, (list, tuple)) and value and all(isinstance(part, (int, float)) for part in value):
                scores[name] = list(value)
        answer = row["filtered_resps"][0] if len(row["filtered_resps"]) == 1 else None
        extra = {"text": answer} if isinstance(answer, str) else {}
        found.append({"task": task, "id": row["doc_id"], "filter": row["filter"], **scores, **extra})
    return found


def _count(task: str, found: dict) -> int:
    counts = found["n-samples"]
    if task in counts:
        return counts[task]["effective"]
    members = found.get("group_subtasks", {}).get(task, [])
    return sum(counts[name]["effective"] for name in members if name in counts)


def _hash(hashes: list[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


# ---- names --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Path | None]:
    """{name: its YAML file, None for a group or a tag} of what lm-eval ships, read off the text of its YAML files.

    A second or two; lm-eval's own index takes ten.
    """
    spec = find_spec("lm_eval")
    assert spec is not None  # require_harness has looked
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0]) / "tasks"
    names: dict[str, Path | None] = {}
    for path in sorted(root.rglob("*.yaml")):
        text = path.read_text(errors="replace")
        keys = {kind: _names(text, kind) for kind in ("task", "group", "tag")}
        whole = not keys["group"]
        for name in keys["task"] if whole else ():
            names.setdefault(name, path)
        for name in keys["group"] + keys["tag"]:
            names.setdefault(name, None)
    return names


def _names(text: str, key: str) -> list[str]:
    """Values of a top-level key that is a word or a list of words."""
    found = []
    for match in re.finditer(rf"^[\"']?{key}[\"']?:[ \t]*(.*(?:\n[ \t]*-[ \t].*)*)", text, re.MULTILINE):
        value = match[1]
        if value.strip():
            first = re.split(r"(?:^|\s)#", value.splitlines()[0])[0].strip().strip("\"'[]")
            found += [word.strip(" \"'") for word in first.split(",") if word.strip()] if first else []
        found += re.findall(r"^[ \t]*-[ \t]+[\"']?([\w.\-]+)[\"']?[ \t]*(?:[ \t]#.*)?$", value, re.MULTILINE)
    return found


def _declared_name(path: Path) -> str:
    """What a local YAML file calls its task or group."""
    text = path.read_text(errors="replace")
    names = _names(text, "group") or _names(text, "task")
    if not names:
        raise TaskError(f"eval.tasks: {path}: not a task of lm-eval (it has no top-level `task:` or `group:`)")
    return names[0]


def _missing_package(task: str, error: ImportError) -> str:
    said = first_line(error)
    if task.startswith("longbench"):
        return f"eval.tasks: {task}: needs packages of its own; install the extra: pip install 'ratplus[longbench]'"
    return f"eval.tasks: {task}: needs a package that is not installed ({said}); install it with pip"


def _cannot_load(task: str, error: Exception) -> str:
    said = first_line(error)
    if isinstance(error, KeyError):
        return f"eval.tasks: {task}: its data has no split or column {said}"
    if isinstance(error, (TypeError, AttributeError)):
        return f"eval.tasks: {task}: cannot be loaded ({type(error).__name__}: {said})"
    return (
        f"eval.tasks: {task}: its data set cannot be loaded ({type(error).__name__}: {said}); fetch it once where "
        f"there is a network, or give files: {{task: {task}, dataset_path: json, dataset_kwargs: {{data_files: ...}}}}"
    )


@contextmanager
def _quiet() -> Generator[None]:
    """lm-eval and datasets print and log every step, and their progress bars would break ours; errors are raised."""
    for name in ("lm_eval", "lm-eval", "datasets", "evaluate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
