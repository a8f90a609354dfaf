"""Learning rates of the forget gates that are not those of the other weights (`gate_lr`, `gate_bias_lr` of a recipe).

A model that gets its recurrence late starts with gates that barely open, and AdamW moves every weight by about its
learning rate a step, whatever its gradient: at the rate that suits trained weights the gates would stay where they are.
Biases are parameters of their own, so they have a group of the optimizer. A gate's matrix is the last rows of a mixer's
`in_proj`: what the optimizer did to them is stretched after each of its steps, which is AdamW at the other rate.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from ratplus.config.train import RecipeSection
from ratplus.model import RATPlus
from ratplus.model.network import Mixer
from ratplus.model.state_mixer import StateMixer

# Key of an optimizer's group: by what its learning rate is multiplied.
SCALE = "scale"


def parameter_groups(model: RATPlus, recipe: RecipeSection) -> list[dict]:
    """Groups for AdamW: all parameters in one, or some in a second one, without weight decay.

    Those are the biases of forget gates where they have a learning rate of their own, since decay would pull a bias to
    0, which is a gate that is half open; and the decay rates and step sizes of mixers with a state, for a like reason.
    """
    mixers = [block.mixer for block in model.blocks]
    apart = [x for mixer in mixers if isinstance(mixer, StateMixer) for x in mixer.undecayed]
    scale = 1.0
    if recipe.gate_bias_lr is not None:
        apart += [m.gate_bias for m in mixers if isinstance(m, Mixer) and m.gate_bias is not None]
        scale = recipe.gate_bias_lr / recipe.lr if model.config.attends else 1.0
    if not apart:
        return [{"params": list(model.parameters())}]
    chosen = set(apart)
    others = [parameter for parameter in model.parameters() if parameter not in chosen]
    return [{"params": others}, {"params": apart, SCALE: scale, "weight_decay": 0.0}]


class GateRows:
    """The rows of all mixers' matrices that make forget gates, and how much further than the others they move.

    With sharded parameters, every rank must make one, and has its own rows in it.
    """

    def __init__(self, model: RATPlus, recipe: RecipeSection):
        self.factor = 1.0 if recipe.gate_lr is None else recipe.gate_lr / recipe.lr
        self._places: list[tuple[Tensor, int]] = []
        if self.factor != 1 and model.config.recurrence:
            for block in model.blocks:
                matrix, before = block.mixer.in_proj.weight, sum(block.mixer.sizes[:-1])
                self._places.append((matrix, _first_here(matrix, before)))

    @contextmanager
    def stretched(self) -> Generator[None, None, None]:
        """Around a step of the optimizer: the gates' rows end `factor` times as far from where they were."""
        with torch.no_grad():
            before = [rows.clone() for rows in self._rows()]
            yield
            for rows, old in zip(self._rows(), before):
                rows.copy_(torch.lerp(old, rows, self.factor))

    def _rows(self) -> Iterator[Tensor]:
        for matrix, first in self._places:
            whole = matrix.to_local() if isinstance(matrix, DTensor) else matrix
            yield whole.detach()[first:]


def _first_here(matrix: Tensor, first: int) -> int:
    """Which of this rank's rows of a matrix is the first from row `first` on; their number if none is."""
    if not isinstance(matrix, DTensor):
        return first
    numbers = torch.arange(matrix.shape[0], device=matrix.to_local().device)
    mine = distribute_tensor(numbers, matrix.device_mesh, matrix.placements).to_local()
    return int((mine < first).sum())
