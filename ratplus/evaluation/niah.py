"""The NIAH tasks as a suite: the model's answers, both scores, accuracy by depth."""

from __future__ import annotations

import hashlib

from ratplus.config.eval import NIAH_VERSION
from ratplus.data.needles import Item, overlap, substring
from ratplus.evaluation.decoding import Decoding, generate_texts
from ratplus.evaluation.metrics import clustered_mean
from ratplus.evaluation.scoring import Progress, Scorer
from ratplus.records.record import Metric

SCORES = ("overlap", "substring")
# In percent of the haystack; for tasks that ask for one needle.
DEPTH_BINS = ((0, 20), (20, 40), (40, 60), (60, 80), (80, 101))


def evaluate_niah(
    scorer: Scorer, tokenizer, tasks: dict[str, list[Item]], progress: Progress | None = None
) -> tuple[dict, list[dict], dict]:
    """(metrics, samples, facts) of {task: items}.

    Metrics of each task: `<task>_substring` (RULER's, which tables lead with), `<task>_overlap` (the paper's, which
    counts `36051.` as wrong), and where one needle is asked for both by its depth in percent,
    `<task>_substring_<from>_<to>`. An answer ends at a line's end or end-of-text.

    Raises:
        ValueError: a prompt that is longer than the model's context, with truncation off.
        BadLogits: NaN or infinite logits.
    """
    metrics, samples, facts = {}, [], {}
    total, done = sum(map(len, tasks.values())), 0

    def finished(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for task, items in tasks.items():
        prompts = [tokenizer.encode(item.prompt) for item in items]
        how = Decoding(until=("\n",), max_new_tokens=max(item.new_tokens for item in items))
        texts = generate_texts(scorer, tokenizer, prompts, how, progress=finished)
        own = []
        for index, (item, text) in enumerate(zip(items, texts)):
            scores = {"overlap": overlap(text, item.answers), "substring": substring(text, item.answers)}
            own.append({"task": task, "id": index, **scores, "depths": list(item.depths), "text": text})
        metrics |= _metrics(task, own)
        samples += own
        whole = repr([(item.prompt, item.answers) for item in items])
        facts[task] = {
            "version": NIAH_VERSION,
            "samples": len(items),
            "prompts_sha256": hashlib.sha256(whole.encode()).hexdigest(),
        }  # fmt: skip
    return metrics, samples, facts


def _metrics(task: str, samples: list[dict]) -> dict[str, Metric]:
    def mean(name: str, rows: list[dict]) -> Metric:
        return clustered_mean([row[name] for row in rows], [1] * len(rows))

    metrics = {f"{task}_{name}": mean(name, samples) for name in SCORES}
    if all(len(row["depths"]) == 1 for row in samples):
        for low, high in DEPTH_BINS:
            rows = [row for row in samples if low <= 100 * row["depths"][0] < high]
            if rows:
                metrics |= {f"{task}_{name}_{low}_{high}": mean(name, rows) for name in SCORES}
    return metrics
