"""Tensors that ranks share: spreading whole ones from rank 0, gathering them there, and sharding a model (FSDP)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ratplus.model import RATPlus


def shard(model: RATPlus, mesh: DeviceMesh, device: torch.device, bf16: bool) -> None:
    """Shard the parameters of `model` over the mesh, in place, with the values that rank 0 holds.

    Each block's matrices are one group: gathered when the block runs, freed after. Under bf16 they are gathered as
    bfloat16, which is what autocast makes of them anyway; norms and the embedding, which autocast leaves alone, stay
    float32 in the outermost group. So the numbers are those of one process up to the order of float sums. The hooks
    that gather are the block's own: what runs inside of it can be compiled, or computed again, as a whole.
    """
    whole = model.state_dict() if dist.get_rank() == 0 else {}
    model.to("meta")  # which gives the model new parameters; `whole` keeps the old ones
    policy = MixedPrecisionPolicy()
    if bf16:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    matrices = {parameter for block in model.blocks for parameter in block.parameters() if parameter.dim() == 2}
    fully_shard(model, mesh=mesh, ignored_params=matrices)  # before the blocks, whose groups then lack the norms
    for block in model.blocks:
        norms = set(block.parameters()) - matrices
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=norms)
    model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        spread(parameter, whole.pop(name, None))


@torch.no_grad()
def spread(target: Tensor, whole: Tensor | None) -> None:
    """Fill `target` on every rank, sharded or not, from the whole tensor that rank 0 gives."""
    if isinstance(target, DTensor):
        device = target.to_local().device
        empty = torch.empty(target.shape, device=device, dtype=target.dtype)
        source = empty if whole is None else whole.to(device=device, dtype=target.dtype)
        target.copy_(distribute_tensor(source, target.device_mesh, target.placements))
    else:
        if whole is not None:
            target.copy_(whole)
        dist.broadcast(target, 0)


def gather(tensor: Tensor) -> Tensor | None:
    """The whole of a tensor in CPU memory on rank 0, None elsewhere; all ranks must call it."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu() if dist.get_rank() == 0 else None


def gather_model(model: nn.Module) -> dict | None:
    """The state_dict of whole tensors on rank 0, None elsewhere."""
    state = {name: gather(tensor) for name, tensor in model.state_dict().items()}
    return state if dist.get_rank() == 0 else None


def gather_optimizer(optimizer: torch.optim.Optimizer) -> dict | None:
    """The optimizer's state_dict of whole tensors on rank 0, None elsewhere."""
    state = optimizer.state_dict()
    state["state"] = {
        index: {key: gather(value) for key, value in entries.items()} for index, entries in state["state"].items()
    }
    return state if dist.get_rank() == 0 else None


def spread_optimizer(optimizer: torch.optim.AdamW, state: dict | None) -> None:
    """Give every rank the state of a fresh AdamW, sharded as its parameters are, from rank 0's state_dict."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        entries = {} if state is None else state["state"][index]
        own = optimizer.state[parameter]
        own["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        own["exp_avg"], own["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        for key, target in own.items():
            spread(target, entries.get(key))
