"""NaN and infinite logits: the evaluation fails, and says in which part of the model they began."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ratplus.config.mixer import TITLES
from ratplus.model import RATPlus
from ratplus.pattern import Pattern, PatternMap


class BadLogits(ValueError):
    """The model produced NaN or infinite logits."""


def check_logits(logits: Tensor, model: RATPlus, tokens: Tensor, patterns: PatternMap | Pattern | None) -> None:
    """Raise BadLogits if any of `logits` is NaN or infinite.

    Args:
        tokens: [B, T], what to run again to find where they began.
    """
    if not torch.isfinite(logits).all():
        raise BadLogits(
            f"the model's logits are NaN or infinite, {where_it_began(model, tokens, patterns)}; "
            "the training run diverged (lower its learning rate), or the weights that it began with are damaged or not "
            "of this shape (import them again)"
        )


@torch.no_grad()
def where_it_began(model: RATPlus, tokens: Tensor, patterns: PatternMap | Pattern | None = None) -> str:
    """Run `tokens` [B, T] part by part: "first in layer 3's attention, whose out_proj.weight holds NaN", for example.

    What a part says is of its output; its weights are named if they are not finite themselves. Where this run finds
    nothing (they began in a step of decoding or in a continuation), that is said.
    """
    parts: list[tuple[str, nn.Module]] = [("the embedding", model.embed)]
    for index, block in enumerate(model.blocks):
        parts += [
            (f"layer {index}'s {TITLES[model.config.mixer]}", block.mixer),
            (f"layer {index}'s feed-forward", block.ffn),
        ]
    parts.append(("the last norm", model.norm))
    bad: dict[str, bool] = {}

    def look(name: str):
        def hook(_part, _inputs, output) -> None:
            bad[name] = not bool(torch.isfinite(output).all())

        return hook

    handles = [part.register_forward_hook(look(name)) for name, part in parts]
    try:
        logits = model(tokens, model.resolve_patterns(patterns).in_prompt)
    finally:
        for handle in handles:
            handle.remove()
    head = model.embed if model.head is None else model.head  # the embedding's matrix again, or one of its own
    for name, part in [*parts, ("the output head", head)]:
        holds = [key for key, value in part.named_parameters() if not bool(torch.isfinite(value).all())]
        if bad.get(name, bool(holds) or not bool(torch.isfinite(logits).all())):
            return f"first in {name}" + (f", whose {', '.join(holds)} holds NaN or infinite numbers" if holds else "")
    return "which a run of these tokens alone does not show (they began while decoding or in a continuation)"
