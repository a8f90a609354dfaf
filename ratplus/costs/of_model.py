"""The cost of a model under a pattern, whatever its mixer is: the front door to `cost` and `state_cost`."""

from __future__ import annotations

from ratplus.config.model import ModelConfig
from ratplus.costs.cost import BYTES_PER_ELEMENT, Cost, cost
from ratplus.costs.state import state_cost
from ratplus.pattern import PatternMap


def model_cost(
    model: ModelConfig, patterns: PatternMap, length: int, bytes_per_element: int = BYTES_PER_ELEMENT,
    prompt: int | None = None,
) -> Cost:  # fmt: skip
    """All costs of one sequence of `length` tokens; of a mixer with a state they are those of any pattern.

    Args:
        patterns: of the model's layers and heads.
        bytes_per_element: of keys, values and gate logits: 2 for bfloat16, 4 for float32.
        prompt: how many of the tokens were the prompt, which SnapKV asks for; None: all of them.

    Raises:
        ValueError: as of `cost`.
    """
    if not model.attends:
        return state_cost(model, length, bytes_per_element)
    return cost(
        patterns, length, model.d_head, recurrence=model.recurrence, bytes_per_element=bytes_per_element,
        kv_heads=model.kv_heads, prompt=prompt,
    )  # fmt: skip
