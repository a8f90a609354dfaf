"""`train.sft`: what a supervised fine-tuning on needles reads. Torch-free, like all of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from ratplus.config_check import check
from ratplus.config_eval import NIAH_TASKS

# Of the split's questions and rows; another version is another result, and has another id.
SFT_VERSION = 1


@dataclass
class NeedleSplit:
    """The train split of the NIAH tasks: questions and their answers, of which only the answers have labels.

    Its keys never are an evaluation's keys (ratplus.evaluation.niah), so no question is asked twice.

    Args:
        tasks: names among NIAH_TASKS.
        items: questions of each task; one pass over all of them is an epoch, so there are
            steps * batch / (items * tasks) epochs.
        length: tokens of a prompt and its answer together, and of a row; null takes train.context.
        template: ruler (its words) or short (bare `key: value` lines), as in eval.niah.
        haystack: train (text of the corpus' training split) or noise, where the task leaves a choice.
        digits: of a number to be found; null takes the template's (ruler 7, short 4).
        seed: of the questions; the same for every cell. Their order follows the cell's seed.
    """

    tasks: list[str] = field(default_factory=list)
    items: int = 500
    length: int | None = None
    template: str = "ruler"
    haystack: str = "train"
    digits: int | None = None
    seed: int = 0

    def check_split(self, where: str, steps: int, context: int) -> None:
        """Refuse impossible values; `where` is the key prefix that the message shows."""
        for name in self.tasks:
            check(name in NIAH_TASKS, f"{where}.tasks", name, f"allowed: {', '.join(NIAH_TASKS)}")
        check(len(set(self.tasks)) == len(self.tasks), f"{where}.tasks", self.tasks, "name each task once")
        check(
            steps == 0 or bool(self.tasks),
            f"{where}.tasks",
            self.tasks,
            f"{where}.steps={steps} needs some to train on: {', '.join(NIAH_TASKS)}; or set {where}.steps=0",
        )
        for name, least in (("items", 1), ("length", 16), ("digits", 1), ("seed", 0)):
            value = getattr(self, name)
            check(value is None or value >= least, f"{where}.{name}", value, f"it must be ≥ {least}")
        check(self.length is None or self.length <= context, f"{where}.length", self.length,
               f"it must be ≤ train.context={context}")  # fmt: skip
        check(self.template in ("ruler", "short"), f"{where}.template", self.template, "allowed: ruler, short")
        check(self.haystack in ("train", "noise"), f"{where}.haystack", self.haystack, "allowed: train, noise")
