"""`train=`: context, precision, and the recipes of the training stages. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ratplus.config.check import check, check_least
from ratplus.config.eval import NIAH_TASKS, NIAH_TEMPLATES
from ratplus.pattern import Pattern, build_map
from ratplus.records.limits import MOST

# Version of the split's questions and rows: another version gives another result, and so another id.
SFT_VERSION = 1


@dataclass
class RecipeSection:
    """`train.pretrain`, `train.adapt`, `train.sft`: one run of AdamW under a cosine (paper, training settings)."""

    steps: int = 100
    """Batches trained on (active recurrence learning makes two optimizer steps of each). The dataclass's 100 are a
    minute of a small model; every shipped `train=` has its own number. Allowed: ≥ 0."""
    batch: int = 8
    """Sequences of train.context tokens in a batch, over all devices. 8 fit any CPU; the paper has 512 and more.
    Allowed: ≥ 1."""
    micro_batch: int | None = None
    """Sequences at a time on a device; it divides batch. Null takes the whole batch at once. Changes the order of float
    sums only, and no id. Allowed: ≥ 1, null."""
    lr: float = 1e-3
    """Peak learning rate. About what models of a million parameters bear; the paper's are 6e-4 to 8e-4 and, in
    adaptation, a tenth of that or less. Allowed: > 0."""
    lr_min: float = 1e-6
    """Learning rate that the cosine ends at. As in the paper. Allowed: ≥ 0, at most lr."""
    warmup: float = 0.05
    """Fraction of the steps over which the learning rate rises linearly. As in the paper, whose adaptation has none
    (7.6B: 0.02). Allowed: ≥ 0, < 1."""
    weight_decay: float = 0.1
    """AdamW's weight decay. As in the paper. Allowed: ≥ 0."""
    beta1: float = 0.9
    """AdamW's decay of the first moment. As in the paper. Allowed: ≥ 0, < 1."""
    beta2: float = 0.95
    """AdamW's decay of the second moment. As in the paper. Allowed: ≥ 0, < 1."""
    clip: float = 1.0
    """Norm that gradients are clipped to. As in the paper. Allowed: > 0."""
    order: str = "ordered"
    """ordered reads the training stream front to back, random takes rows at random offsets. The paper pretrains in
    order and adapts at random. Allowed: ordered, random."""
    sparse: bool = False
    """True pretrains from scratch with the cell's own pattern, once a pattern. False pretrains densely, once for all
    patterns, which is the paper's promise."""
    dense: bool = False
    """True trains dense instead of with the cell's pattern, which then is used at inference alone; with `arl` as well,
    jointly with D*, as in the paper's tables of query-aware selection. False adapts and fine-tunes for the pattern.
    Pretraining is dense anyway, unless `sparse`. Enters ids as the pattern that is trained."""
    mixed: list[str] = field(default_factory=list)
    """Patterns of mixed adaptation: each step draws one of them for each layer or head, by seed and step, whatever the
    cell's pattern is; so all cells share one adapted model, as a search among hybrids needs (docs/search.md). None by
    default. Allowed: none, or at least two labels such as D1 and D16-W64, in train.adapt alone."""
    mixed_over: str = "layers"
    """What mixed adaptation draws for: layers, or heads of keys, where heads of one layer will differ. Layers, the more
    usual hybrid. Allowed: layers, heads."""
    arl: bool = False
    """Active recurrence learning: each batch first with the sparse pattern of arl_*, then once as usual. False here;
    `train=tiny` and the paper's turn it on for models with a recurrence."""
    arl_dilation: int | None = 64
    """The dilation D* of active recurrence learning; null keeps no dilated key. The paper's 64. Allowed: ≥ 1, null."""
    arl_window: int = 0
    """Window of active recurrence learning, in tokens. As in the paper. Allowed: ≥ 0."""
    arl_sinks: int = 0
    """Initial tokens that active recurrence learning keeps. As in the paper. Allowed: ≥ 0."""
    gate_lr: float | None = None
    """Peak learning rate of the matrices of forget gates; it falls as lr does. A model that gets its recurrence late
    (`train=retrofit`) needs a higher one than for its trained weights. Null is lr, as in the paper; without a
    recurrence nothing reads it. Allowed: > 0, null."""
    gate_bias_lr: float | None = None
    """Peak learning rate of the biases of forget gates (model.gate_bias), which have no weight decay then; it falls as
    lr does. Null treats them as all other weights. Allowed: > 0, null."""

    def check(self, where: str) -> None:
        """Refuse impossible values; `where` is the key prefix that the message shows. TrainSection calls it."""
        check_least(self, where, steps=0, batch=1, weight_decay=0)
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
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{where}.{name}", value, "it must be in [0, 1)")
        check(self.clip > 0, f"{where}.clip", self.clip, "it must be > 0")
        for name in ("gate_lr", "gate_bias_lr"):
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, f"{where}.{name}", value, "it must be > 0, or null")
        check(self.order in ("ordered", "random"), f"{where}.order", self.order, "allowed: ordered, random")
        self._check_mixed(where)
        # The pattern checks its own values; it only names them without the `arl_` prefix.
        try:
            build_map(self.arl_dilation, self.arl_window, self.arl_sinks, 1, 1)
        except ValueError as error:
            raise ValueError(str(error).replace("pattern.", f"{where}.arl_", 1)) from None

    def _check_mixed(self, where: str) -> None:
        over = self.mixed_over
        check(over in ("layers", "heads"), f"{where}.mixed_over", over, "allowed: layers, heads")
        check(
            bool(self.mixed) or over == "layers", f"{where}.mixed_over", over, f"it means nothing without {where}.mixed"
        )
        if not self.mixed:
            return
        found = []
        for label in self.mixed:
            try:
                found.append(Pattern.from_label(label))
            except ValueError as error:
                raise ValueError(f"{where}.mixed: {error}") from None
            check(not found[-1].needs_prompt, f"{where}.mixed", label, "what it shows depends on where a prompt ends, "
                  "so nothing trains with it")  # fmt: skip
        different = len(set(found)) == len(found) > 1
        check(different, f"{where}.mixed", self.mixed, "give at least two patterns, each once")
        blocks = {p.block for p in found if p.top is not None}
        check(len(blocks) < 2 or over == "layers", f"{where}.mixed", self.mixed, "heads of one layer need one block "
              f"length; use {where}.mixed_over=layers")  # fmt: skip
        check(not self.dense, f"{where}.dense", True, f"{where}.mixed says what is trained; leave one of them out")

    @property
    def arl_pattern(self) -> Pattern | None:
        """What active recurrence learning trains with; None where it is off."""
        return Pattern(self.arl_dilation, self.arl_window, self.arl_sinks) if self.arl else None


@dataclass
class NeedleSplit:
    """The train split of the NIAH tasks: questions and their answers, of which only the answers have labels.

    Its keys are never an evaluation's keys (ratplus.data.needles), so no question is asked twice; but with
    template=letters, which has eight keys, values, places and haystack are what is new.
    """

    tasks: list[str] = field(default_factory=list)
    """Tasks to train on. None, since without steps there is nothing to train. Allowed: names as in eval.niah.tasks."""
    items: int = 500
    """Questions of each task. One pass over all of them is an epoch, so there are steps * batch / (items * tasks)
    epochs. The paper does not say how many it has. Allowed: ≥ 1."""
    length: int | None = None
    """Tokens of a prompt and its answer together, and of a row. Null takes train.context. Allowed: ≥ 16, null."""
    template: str = "ruler"
    """Words of a question, as in eval.niah: ruler (RULER's), short (bare `key: value` lines) or letters (a letter and
    its value). Allowed: ruler, short, letters."""
    questions: int = 1
    """Questions that a row asks of its haystack, one after the other, each with labels on its answer: many make a small
    model learn to look up by key in a fraction of the tokens. One, as an evaluation asks. More need tasks that hide
    several needles and ask for one: niah_multikey_1. Allowed: ≥ 1."""
    haystack: str = "train"
    """What needles lie in, where the task leaves a choice: text of the training split (train), as an evaluation takes
    held-out text, or one paragraph repeated (noise). Allowed: train, noise."""
    digits: int | None = None
    """Digits of a number to be found. Null takes the template's (ruler 7, short 4, letters 2). Allowed: ≥ 1, null."""
    seed: int = 0
    """Seed of the questions; the same for every cell, while their order follows the cell's seed. 0 is as good as any.
    Allowed: ≥ 0."""

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
        check_least(self, where, items=1, length=16, questions=1, digits=1, seed=0)
        check(self.length is None or self.length <= context, f"{where}.length", self.length,
               f"it must be ≤ train.context={context}")  # fmt: skip
        allowed = f"allowed: {', '.join(NIAH_TEMPLATES)}"
        check(self.template in NIAH_TEMPLATES, f"{where}.template", self.template, allowed)
        several = [name for name in self.tasks if name != "niah_multikey_1"]
        check(self.questions == 1 or not several, f"{where}.questions", self.questions,
              f"more than one needs tasks that hide several needles and ask for one of them (niah_multikey_1), not "
              f"{', '.join(several)}")  # fmt: skip
        check(self.haystack in ("train", "noise"), f"{where}.haystack", self.haystack, "allowed: train, noise")


@dataclass
class SftSection(NeedleSplit, RecipeSection):
    """`train.sft`: after adaptation, a short supervised fine-tuning on needles with the cell's pattern (paper, RULER).

    A recipe, and what it reads. `sparse` has no meaning here.
    """

    steps: int = 0
    """None, so there is no such stage, and nothing of it enters an id. Allowed: ≥ 0."""
    batch: int = 32
    """As in the paper. Allowed: ≥ 1."""
    lr: float = 1e-5
    """As in the paper. Allowed: > 0."""
    weight_decay: float = 0.01
    """That of the paper's public code. Allowed: ≥ 0."""
    order: str = "random"
    """random shuffles each epoch, ordered reads the split front to back. Allowed: ordered, random."""


@dataclass
class TrainSection:
    """`train=`: context, precision, and the recipe of each training stage."""

    context: int = 512
    """Tokens of a training sequence, and the longest that evaluation reads. 512 shows D=64 beside dense on a CPU; the
    paper's is 4096. Allowed: ≥ 2, ≤ 16777216."""
    precision: str = "float32"
    """float32, or bf16: bfloat16 autocast over float32 weights and moments (the paper's). float32, since CPUs gain
    nothing from bf16. Allowed: float32, bf16."""
    pretrain: RecipeSection = field(default_factory=RecipeSection)
    adapt: RecipeSection = field(default_factory=lambda: RecipeSection(order="random", warmup=0.0))
    """As the paper adapts: random offsets, no warm-up."""
    sft: SftSection = field(default_factory=SftSection)

    def __post_init__(self):
        check_least(self, "train", context=2)
        most = MOST["max_len"]
        check(self.context <= most, "train.context", self.context, f"it must be ≤ {most}")
        check(self.precision in ("float32", "bf16"), "train.precision", self.precision, "allowed: float32, bf16")
        self.pretrain.check("train.pretrain")
        self.adapt.check("train.adapt")
        check(
            not self.adapt.sparse, "train.adapt.sparse", True, "adaptation trains the cell's pattern anyway; use false"
        )
        for name, recipe in (("pretrain", self.pretrain), ("sft", self.sft)):
            check(not recipe.mixed, f"train.{name}.mixed", recipe.mixed, "adaptation alone mixes patterns: "
                  "train.adapt.mixed")  # fmt: skip
        check(not self.pretrain.dense, "train.pretrain.dense", True, "pretraining is dense unless "
              "train.pretrain.sparse=true; use false")  # fmt: skip
        check(self.adapt.dense or not self.adapt.arl, "train.adapt.arl", True, "adaptation trains one pattern alone; "
              "set it to false, or train.adapt.dense=true")  # fmt: skip
        self.sft.check("train.sft")
        self.sft.check_split("train.sft", self.sft.steps, self.context)
        check(not self.sft.sparse, "train.sft.sparse", True, "fine-tuning trains the cell's pattern anyway; use false")
