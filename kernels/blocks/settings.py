"""Settings of query-aware block sparsity as plain values: validation, and the heads that share all of them."""

from dataclasses import dataclass
from functools import lru_cache

from ratplus.kernels.attention.patterns import HeadPattern, Setting, head_patterns, per_head

SCORES = ("mean", "bounds", "random")


@dataclass(frozen=True)
class Blocks:
    """How the keys of a sequence are cut into blocks, and how a query ranks them. The same for all heads of a call.

    Attributes:
        block: keys of a block.
        score: `mean`: the query's product with the mean key. `bounds`: an upper bound on its product with any key of
            the block, from the smallest and largest value of each channel. `random`: a number that depends on seed,
            key head, position and block alone, not on any tensor.
        first: block 0 is always read.
        stride: 1: a block is `block` tokens side by side. D: a block is `block` keys that lie D apart, those at
            positions p with (p + 1) % D == 0; it spans block * D tokens, and its other keys are in no block.
        seed: of the random scores.
    """

    block: int
    score: str = "mean"
    first: bool = True
    stride: int = 1
    seed: int = 0

    def __post_init__(self):
        for name in ("block", "stride"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number ≥ 1")
        if self.score not in SCORES:
            raise ValueError(f"score is {self.score!r}; use one of {', '.join(SCORES)}")

    @property
    def span(self) -> int:
        """Tokens from the beginning of a block to the next one's."""
        return self.block * self.stride

    @property
    def parts(self) -> int:
        """Rows of `d_head` numbers that stand for a block: its mean key; or smallest and largest; or none."""
        return {"mean": 1, "bounds": 2, "random": 0}[self.score]

    def reach(self, length: int) -> int:
        """Blocks that tokens 0 .. length - 1 lie in, the last of which may be incomplete."""
        return -(-length // self.span)


@dataclass(frozen=True)
class HeadSetting:
    """What one head of keys reads: its static pattern, and `top` blocks (0: the static pattern alone)."""

    pattern: HeadPattern
    top: int

    def is_dense(self, length: int, blocks: Blocks) -> bool:
        """Whether every earlier token is visible in a sequence of `length` tokens."""
        all_blocks = blocks.stride == 1 and self.top >= blocks.reach(length)
        return self.pattern.is_dense(length) or all_blocks


def head_settings(
    dilation: Setting, window: Setting, sinks: Setting, top: Setting, heads: int, blocks: Blocks
) -> list[HeadSetting]:
    """The settings of every head of keys. Raises ValueError for values that aren't allowed, as `head_patterns` does."""
    given = (("dilation", -1 if dilation is None else dilation), ("window", window), ("sinks", sinks), ("top", top))
    return list(_head_settings(*(tuple(per_head(name, value, heads)) for name, value in given), 1 + blocks.first))


@lru_cache(maxsize=256)  # a decoding step asks for the same each time, and would wait for it
def _head_settings(
    dilation: tuple[int, ...], window: tuple[int, ...], sinks: tuple[int, ...], tops: tuple[int, ...], least: int
) -> tuple[HeadSetting, ...]:
    """`head_settings` of lists; heads whose settings are equal share one object."""
    for value in set(tops):
        if value != 0 and value < least:
            forced = "a query's own block and block 0" if least == 2 else "a query's own block"
            raise ValueError(
                f"top is {value}; it counts every block that is read, {forced} too: give at least {least}, or 0 for "
                "no blocks"
            )
    patterns = head_patterns(dilation, window, sinks, len(tops))
    settings = [HeadSetting(pattern, value) for pattern, value in zip(patterns, tops, strict=True)]
    known: dict[HeadSetting, HeadSetting] = {}
    return tuple(known.setdefault(setting, setting) for setting in settings)


def group_settings(settings: list[HeadSetting]) -> dict[HeadSetting, list[int]]:
    """Heads that share everything, in order of first appearance."""
    if all(setting is settings[0] for setting in settings):  # to hash each of them would take a decoding step longer
        return {settings[0]: list(range(len(settings)))}
    groups: dict[HeadSetting, list[int]] = {}
    for head, setting in enumerate(settings):
        groups.setdefault(setting, []).append(head)
    return groups
