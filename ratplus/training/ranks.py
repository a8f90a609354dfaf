"""The place of a process among the ranks that train together; torch-free.

Ranks are either started by somebody else (torchrun, srun), who says so in the environment, or by this process, which
is then rank 0 and starts the others when there is something to train.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ratplus.config.run import TrainerSection
from ratplus.config.train import RecipeSection
from ratplus.training.errors import LayoutError


@dataclass(frozen=True)
class Place:
    """One rank of `world`; `external` ranks were started by `starter` and meet at address:port."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    node: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    starter: str | None = None

    @property
    def external(self) -> bool:
        return self.starter is not None


def place_of(trainer: TrainerSection) -> Place:
    """This process's place; `trainer=single` never looks at the environment.

    Raises:
        LayoutError: more or fewer ranks were started than `trainer` asks for, or nodes that nobody has started.
    """
    if trainer.strategy == "single":
        return Place()
    world = trainer.devices * trainer.nodes
    place = external_place()
    if place is not None and place.world != world:
        raise LayoutError(
            f"trainer.devices: got {trainer.devices}; with trainer.nodes={trainer.nodes} that makes {world} ranks, but "
            f"{place.starter} started {place.world}: one for each device of each node is needed"
        )
    if place is None and trainer.nodes > 1:
        raise LayoutError(
            f"trainer.nodes: got {trainer.nodes}; several nodes need a rank for each device started on each of them: "
            f"srun --ntasks-per-node={trainer.devices}, or torchrun --nnodes={trainer.nodes} "
            f"--nproc-per-node={trainer.devices}"
        )
    return place or Place(world=world)


def external_place() -> Place | None:
    """The place that torchrun or srun gave this process; None if they started no more than one."""
    env = os.environ
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        place = Place(
            int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]), int(env.get("GROUP_RANK", 0)),
            env["MASTER_ADDR"], int(env["MASTER_PORT"]), "torchrun",
        )  # fmt: skip
    elif "SLURM_STEP_NUM_TASKS" in env:  # set by srun only: a batch script alone is one process, whatever it reserved
        place = Place(
            int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"]),
            int(env["SLURM_NODEID"]), _slurm_address(), _slurm_port(), "srun",
        )  # fmt: skip
    else:
        return None
    return place if place.world > 1 else None


def _slurm_address() -> str:
    if "MASTER_ADDR" in os.environ:
        return os.environ["MASTER_ADDR"]
    from lightning.fabric.plugins.environments import SLURMEnvironment

    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
    return SLURMEnvironment.resolve_root_node_address(nodes)


def _slurm_port() -> int:
    """The same for all ranks of a job, and hardly ever that of another one."""
    return int(os.environ.get("MASTER_PORT") or 15000 + int(os.environ["SLURM_JOB_ID"][-4:]))


def micro_batches(recipe: RecipeSection, ranks: int, where: str = "train") -> int:
    """Micro-batches that the rows of a step are dealt to; each rank does every ranks-th of them.

    They are as many as on one rank, or as the ranks if these are more: a rank's whole share at once.

    Raises:
        LayoutError: the ranks cannot share them evenly; `where` is the key prefix that the message shows.
    """
    size = recipe.micro_batch or recipe.batch
    count = recipe.batch // size
    if count < ranks and ranks % count == 0:
        count = ranks
    if recipe.batch < ranks:
        raise LayoutError(f"{where}.batch: got {recipe.batch}; {ranks} ranks need at least a row each")
    if count % ranks:
        allowed = even_sizes(recipe.batch, ranks, size)
        mend = f"allowed: {', '.join(map(str, allowed))}" if allowed else f"make {where}.batch a multiple of {ranks}"
        raise LayoutError(
            f"{where}.micro_batch: got {size}, which cuts the batch of {recipe.batch} in {count} parts, and {ranks} "
            f"ranks cannot share them evenly; {mend}"
        )
    return count


def even_sizes(batch: int, ranks: int, most: int) -> list[int]:
    """Micro-batches of up to `most` rows that cut a batch in parts which the ranks share evenly, smallest first."""
    return [n for n in range(1, most + 1) if batch % n == 0 and batch // n % ranks == 0]
