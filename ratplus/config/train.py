"""`train=`: context, precision, and the recipes of the training stages. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field

from ratplus.config.check import check
from ratplus.config.eval import NIAH_TASKS
from ratplus.pattern import Pattern, build_map

# Of the split's questions and rows; another version is another result, and has another id.
SFT_VERSION = 1


@dataclass
class RecipeSection:
    """`train.pretrain`, `train.adapt`: one optimisation run (paper, training settings).

    `sparse` pretrains with the cell's own pattern from scratch, one pretraining a pattern; otherwise it is dense, and
    shared by all patterns.
    """

    steps: int = 100
    batch: int = 8
    micro_batch: int | None = None
    lr: float = 1e-3
    lr_min: float = 1e-6
    warmup: float = 0.05
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    order: str = "ordered"
    sparse: bool = False
    arl: bool = False
    arl_dilation: int | None = 64
    arl_window: int = 0
    arl_sinks: int = 0

    def check(self, where: str) -> None:
        """Refuse impossible values; `where` is the key prefix that the message shows. TrainSection calls it."""
        check(self.steps >= 0, f"{where}.steps", self.steps, "it must be ≥ 0")
        check(self.batch >= 1, f"{where}.batch", self.batch, "it must be ≥ 1")
        micro = self.micro_batch
        check(
            micro is None or (micro >= 1 and self.batch % micro == 0),
            f"{where}.micro_batch",
            micro,
            f"it must divide {where}.batch={self.batch}",
        )
        check(self.lr > 0, f"{where}.lr", self.lr, "it must be > 0")
        check(0 <= self.lr_min <= self.lr, f"{where}.lr_min", self.lr_min, f"it must be between 0 and lr={self.lr}")
        check(0 <= self.warmup < 1, f"{where}.warmup", self.warmup, "it is a fraction of the steps: 0 ≤ warmup < 1")
        check(self.weight_decay >= 0, f"{where}.weight_decay", self.weight_decay, "it must be ≥ 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{where}.{name}", value, "it must be in [0, 1)")
        check(self.clip > 0, f"{where}.clip", self.clip, "it must be > 0")
        check(self.order in ("ordered", "random"), f"{where}.order", self.order, "allowed: ordered, random")
        # The pattern checks its own values; it only names them without the `arl_` prefix.
        try:
            build_map(self.arl_dilation, self.arl_window, self.arl_sinks, 1, 1)
        except ValueError as error:
            raise ValueError(str(error).replace("pattern.", f"{where}.arl_", 1)) from None

    @property
    def arl_pattern(self) -> Pattern | None:
        """What active recurrence learning trains with; None where it is off."""
        return Pattern(self.arl_dilation, self.arl_window, self.arl_sinks) if self.arl else None


@dataclass
class NeedleSplit:
    """The train split of the NIAH tasks: questions and their answers, of which only the answers have labels.

    Its keys never are an evaluation's keys (ratplus.data.needles), so no question is asked twice.

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


@dataclass
class SftSection(NeedleSplit, RecipeSection):
    """`train.sft`: after adaptation, a short supervised fine-tuning on needles with the cell's pattern (paper, RULER).

    A recipe, and what it reads. `steps=0` is no such stage, and nothing of it enters an id. `order=random` shuffles
    each epoch, `ordered` reads the split front to back; `sparse` has no meaning here.
    """

    steps: int = 0
    batch: int = 32
    lr: float = 1e-5
    weight_decay: float = 0.01
    order: str = "random"


@dataclass
class TrainSection:
    """`train=`: context length in tokens, precision, and the recipes; `sft` is left out unless it has steps."""

    context: int = 512
    precision: str = "float32"
    pretrain: RecipeSection = field(default_factory=RecipeSection)
    adapt: RecipeSection = field(default_factory=lambda: RecipeSection(order="random", warmup=0.0))
    sft: SftSection = field(default_factory=SftSection)

    def __post_init__(self):
        check(self.context >= 2, "train.context", self.context, "it must be ≥ 2")
        check(self.precision in ("float32", "bf16"), "train.precision", self.precision, "allowed: float32, bf16")
        self.pretrain.check("train.pretrain")
        self.adapt.check("train.adapt")
        check(
            not self.adapt.sparse, "train.adapt.sparse", True, "adaptation trains the cell's pattern anyway; use false"
        )
        check(not self.adapt.arl, "train.adapt.arl", True, "adaptation trains one pattern alone; set it to false")
        self.sft.check("train.sft")
        self.sft.check_split("train.sft", self.sft.steps, self.context)
        check(not self.sft.sparse, "train.sft.sparse", True, "fine-tuning trains the cell's pattern anyway; use false")
