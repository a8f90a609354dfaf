"""The least that each argument of the cost functions may be: taken, and one less refused by its name."""

import numpy as np
import pytest

from ratplus.costs import cost
from ratplus.costs.cost import Cost
from ratplus.pattern import Pattern, PatternMap

PATTERN = Pattern(4)
MAP = PatternMap.uniform(PATTERN, 2, 4)
# Function -> its arguments, and the least of each.
LEAST = {
    "visible_pairs": {"length": (9, 0), "start": (0, 0)},
    "attention_flops": {"length": (9, 0), "d_head": (8, 1), "start": (0, 0)},
    "decode_flops": {"position": (9, 0), "d_head": (8, 1)},
    "selection_flops": {"length": (9, 0), "d_head": (8, 1)},
    "decode_selection_flops": {"position": (9, 0), "d_head": (8, 1)},
    "visible_ratio": {"length": (9, 0)}, "attention_flops_ratio": {"length": (9, 0)},
    "kv_entries": {"length": (9, 0)}, "kv_read": {"length": (9, 0)}, "kv_peak": {"length": (9, 0)},
    "kv_ratio": {"length": (9, 0)}, "read_ratio": {"length": (9, 0)},
    "kv_bytes": {"length": (9, 0), "d_head": (8, 1), "bytes_per_element": (2, 1)},
    "metadata_bytes": {"length": (9, 0), "d_head": (8, 1), "bytes_per_element": (2, 1)},
    "decode_bytes": {"position": (9, 0), "d_head": (8, 1), "bytes_per_element": (2, 1)},
    "state_bytes": {"d_head": (8, 1), "heads": (3, 1)},
    "recurrence_flops": {"length": (9, 0), "d_head": (8, 1), "heads": (3, 1)},
    "recurrence_bytes": {"length": (9, 0), "d_head": (8, 1), "heads": (3, 1), "bytes_per_element": (2, 1)},
    "dense_pairs": {"length": (9, 0)},
    "cost": {"length": (9, 0), "d_head": (8, 1), "bytes_per_element": (2, 1), "kv_heads": (2, 1)},
}  # fmt: skip
WITHOUT_PATTERNS = ("state_bytes", "recurrence_flops", "recurrence_bytes", "dense_pairs")


def call(name: str, **given):
    if name in WITHOUT_PATTERNS:
        return getattr(cost, name)(**given)
    return getattr(cost, name)(patterns=MAP if name == "cost" else PATTERN, **given)


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, given in LEAST.items() for a in given])
def test_the_least_of_an_argument(name, argument):
    given = {a: usual for a, (usual, _) in LEAST[name].items()}
    usual, least = LEAST[name][argument]
    call(name, **given | {argument: least})
    assert call(name, **given | {argument: np.int64(usual)}) == call(name, **given)
    for wrong in (least - 1, usual + 0.5, float(usual), True, "3"):
        with pytest.raises(ValueError, match=f"^{argument}: got {wrong!r}; it must be a whole number ≥ {least}$"):
            call(name, **given | {argument: wrong})


def test_a_chunk_may_end_where_it_starts():
    assert cost.visible_pairs(PATTERN, 9, 9) == cost.attention_flops(PATTERN, 9, 8, 9) == 0
    with pytest.raises(ValueError, match="start: got 10; a chunk starts within its sequence, at most at length=9"):
        cost.visible_pairs(PATTERN, 9, 10)
    with pytest.raises(ValueError, match=r"kv_heads: got 2 for one head's Pattern; give a PatternMap"):
        cost.cost(PATTERN, 9, 8, kv_heads=2)


def test_what_is_left_out_is_bfloat16_one_head_and_a_whole_sequence():
    assert cost.kv_bytes(PATTERN, 9, 8) == cost.kv_bytes(PATTERN, 9, 8, bytes_per_element=2)
    assert cost.decode_bytes(PATTERN, 9, 8) == cost.decode_bytes(PATTERN, 9, 8, bytes_per_element=2)
    selecting = Pattern(top=2, block=2, score="bounds")
    assert cost.metadata_bytes(selecting, 9, 8) == cost.metadata_bytes(selecting, 9, 8, bytes_per_element=2) == 128
    assert cost.state_bytes(8) == cost.state_bytes(8, heads=1)
    assert cost.recurrence_flops(9, 8) == cost.recurrence_flops(9, 8, heads=1)
    assert cost.recurrence_bytes(9, 8) == cost.recurrence_bytes(9, 8, heads=1, bytes_per_element=2)
    assert cost.visible_pairs(PATTERN, 9) == cost.visible_pairs(PATTERN, 9, start=0)
    assert cost.cost(PATTERN, 9, 8) == cost.cost(PATTERN, 9, 8, recurrence=False, bytes_per_element=2)


@pytest.mark.parametrize("label", ["D4", "top2x2", "D2-quest2x2", "snap4x2", "D4-W3-I1", "top2x2-decode"])
@pytest.mark.parametrize("kv_heads", [None, 2])
def test_a_cost_is_made_of_the_functions_of_the_same_names(label, kv_heads):
    """Sums over queries take all heads; what is held and read takes the heads of keys."""
    patterns = PatternMap.uniform(Pattern.from_label(label), 2, 4)
    held = patterns if kv_heads is None else PatternMap.uniform(Pattern.from_label(label), 2, 2)
    found = cost.cost(patterns, 30, 8, recurrence=True, bytes_per_element=4, kv_heads=kv_heads, prompt=20)
    heads = 8 if kv_heads is None else 4
    assert found == Cost(
        length=30, heads=8, kv_heads=heads,
        visible_pairs=cost.visible_pairs(patterns, 30), pairs_exact=found.pairs_exact,
        attention_flops=cost.attention_flops(patterns, 30, 8), selection_flops=cost.selection_flops(patterns, 30, 8),
        attention_flops_ratio=cost.attention_flops_ratio(patterns, 30),
        decode_flops=cost.decode_flops(patterns, 30, 8, 20),
        decode_selection_flops=cost.decode_selection_flops(patterns, 30, 8),
        kv_entries=cost.kv_entries(held, 30, 20), kv_read=cost.kv_read(held, 30, 20),
        kv_read_exact=cost.kv_read_exact(held), kv_peak=cost.kv_peak(held, 30, 20),
        kv_bytes=cost.kv_bytes(held, 30, 8, 4, 20), metadata_bytes=cost.metadata_bytes(held, 30, 8, 4),
        decode_bytes=cost.decode_bytes(held, 30, 8, 4, 20), kv_ratio=cost.kv_ratio(held, 30, 20),
        read_ratio=cost.read_ratio(held, 30, 20), state_bytes=cost.state_bytes(8, heads),
        recurrence_flops=cost.recurrence_flops(30, 8, heads), recurrence_bytes=cost.recurrence_bytes(30, 8, heads, 4),
    )  # fmt: skip
