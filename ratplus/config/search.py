"""`ratplus search`: the keys of a pattern search. They are words of that command alone, and stand in no cell."""

from __future__ import annotations

from dataclasses import dataclass, field

from ratplus.config.check import check
from ratplus.config.eval import NIAH_TASKS, NIAH_TEMPLATES

OVER = ("layers", "heads", "layers,heads")
ANCHORS = ("dense", "sparse", "both")


@dataclass
class SearchSection:
    """Keys of `ratplus search`, a search of one pattern for each layer or head under a budget."""

    model: str | None = None
    """The weights: id of a trained stage (or how it begins), or a model folder. Allowed: an id, a folder."""
    sweep: str | None = None
    """Sweep folder in which the id is looked for. Null looks through outputs/. Allowed: a folder, null."""
    budget: list[str] = field(default_factory=lambda: ["kv:0.25"])
    """What the pattern may cost at the end of `length` tokens: kv (bytes of keys and values held), read (bytes that a
    decoding step reads), flops (of attention in a forward pass) or latency (of a decoding step). A number alone is the
    share of the dense model's. Several budgets give a frontier; they share most of the work. A quarter, since that is
    where uniform patterns begin to hurt. Allowed: kv:0.25, read:0.1, flops:0.5, latency:0.5, kv:64MB, latency:3ms,
    several of them with commas between."""
    candidates: list[str] = field(default_factory=lambda: ["D1", "D4", "D16", "D64", "D16-W64"])
    """Patterns that a unit may have. Dense must be among them, or no unit may be dense. A factor of four between
    dilations, since a finer grid multiplies the passes. Allowed: labels of patterns that have a loss, at least two."""
    over: str = "layers"
    """What gets a pattern of its own: layers, heads (of keys and values, in every layer), or layers,heads: layers
    first, then the heads of those layers that the budgets leave undecided. Layers, which take the fewest passes.
    Allowed: layers, heads, layers,heads."""
    out: str | None = None
    """File of the pattern that is found. Null puts it at best.yaml in `output`; of several budgets each gets a name
    that ends in its budget. Allowed: a file that ends in .yaml, null."""
    output: str | None = None
    """Folder of the search: measured passes, results, report. Searches of the same model and data may share one. Null
    puts it at outputs/search/<model>. Allowed: a folder, null."""
    length: int | None = None
    """Tokens of a row; patterns look harmless at lengths that are too short. Null takes the model's context. Allowed: ≥
    16, at most the model's context, null."""
    text_rows: int = 16
    """Rows of held-out text in each of the three splits; fewer where there is less text. 16 is a first look: the report
    says whether more are needed. Allowed: ≥ 3."""
    recall_rows: int = 32
    """Rows of stacked recall in each split, of models that were trained on it. 0 leaves it out. Allowed: ≥ 3, 0."""
    tasks: list[str] = field(default_factory=list)
    """Needle tasks (as in eval.niah.tasks) whose answers' loss is measured in each split. None by default, since a
    model must know how to answer. Allowed: niah_single_1 to 3, niah_multikey_1 to 3, niah_multivalue, niah_multiquery.
    """
    test_tasks: list[str] = field(default_factory=list)
    """Needle tasks of the test split in place of `tasks`: kinds that the search has not seen. None takes `tasks`.
    Allowed: as of tasks."""
    items: int = 16
    """Questions of each needle task in each split. As many as rows of text. Allowed: ≥ 3."""
    template: str = "ruler"
    """Words of a question, as in eval.niah. Allowed: ruler, short, letters."""
    digits: int | None = None
    """Digits of a number to be found. Null takes the template's. Allowed: ≥ 1, null."""
    weight: float | None = None
    """w of damage = Δ loss of text + w * Δ loss of answers, both in nats per token. Null takes the w with which both
    spread equally over the uniform patterns on the search split, or are equally precise, whichever is larger.
    Allowed: ≥ 0, null."""
    anchor: str = "both"
    """What single substitutions are measured in: the dense model, the best uniform pattern of each budget (all sparse
    but one), or both; then what is found from each is compared. Both, since damages do not add up. Allowed: dense,
    sparse, both."""
    remeasure: int = 1
    """Rounds in which the fifth of the units nearest to a change is measured again, within the pattern that was found.
    One takes most of the gain. Allowed: ≥ 0."""
    swaps: int = 40
    """Exchanges that are tried at the end: one unit denser, another sparser. As many passes for each budget. Allowed: ≥
    0."""
    undecided: int = 8
    """Layers whose heads are told apart with over=layers,heads, at most. Allowed: ≥ 1."""
    random: int = 20
    """Random hybrids of the same cost beside the result. 20 give a band of 90%. Allowed: ≥ 3, 0."""
    screen: bool = True
    """Whether the ranking by what a head's own output loses is made too, as a baseline: one more pass for each
    candidate."""
    bench: str | None = None
    """JSON file of `ratplus bench model --json` with this model's decoding times under several patterns, of which
    budget=latency fits its prediction. Null times the candidates here. Allowed: a file, null."""
    batch: int = 16
    """Rows at a time; changes no result but the order of float sums. Allowed: ≥ 1."""
    seed: int = 0
    """Seed of the splits' questions and of the random hybrids. 0 is as good as any. Allowed: ≥ 0, ≤ 2147483647."""
    accelerator: str = "auto"
    """Device. auto takes CUDA where there is some. Allowed: auto, cpu, cuda."""
    threads: int | None = None
    """CPU threads. Null leaves torch's own choice. Allowed: ≥ 1, null."""
    dry_run: bool = False
    """True says how many passes the search takes, and how long, from a timed one; it measures and writes nothing."""

    def __post_init__(self):
        check(bool(self.model), "model", self.model, "give a model folder, or the id of a trained stage")
        check(bool(self.budget), "budget", self.budget, "give one such as kv:0.25")
        check(self.over in OVER, "over", self.over, f"allowed: {'; '.join(OVER)}")
        check(self.anchor in ANCHORS, "anchor", self.anchor, f"allowed: {', '.join(ANCHORS)}")
        check(self.out is None or self.out.endswith((".yaml", ".yml")), "out", self.out, "it must end in .yaml")
        check(self.accelerator in ("auto", "cpu", "cuda"), "accelerator", self.accelerator, "allowed: auto, cpu, cuda")
        check(self.template in NIAH_TEMPLATES, "template", self.template, f"allowed: {', '.join(NIAH_TEMPLATES)}")
        for key in ("tasks", "test_tasks"):
            for name in getattr(self, key):
                check(name in NIAH_TASKS, key, name, f"allowed: {', '.join(NIAH_TASKS)}")
        least = {"length": 16, "text_rows": 3, "items": 3, "digits": 1, "weight": 0, "remeasure": 0, "swaps": 0,
                 "undecided": 1, "batch": 1, "seed": 0, "threads": 1}  # fmt: skip
        for key, smallest in least.items():
            value = getattr(self, key)
            check(value is None or value >= smallest, key, value, f"it must be ≥ {smallest}")
        check(self.seed < 2**31, "seed", self.seed, "it must be ≤ 2147483647")
        for key in ("recall_rows", "random"):
            value = getattr(self, key)
            check(value == 0 or value >= 3, key, value, "it must be 0, or ≥ 3")
