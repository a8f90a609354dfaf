"""A cell whose training several ranks share: rank 0 runs the stages, the others train along when it tells them to."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ratplus.config.cell import Config
from ratplus.records.record import STAGES, TRAINING, Record
from ratplus.stages.run_stage import Surroundings
from ratplus.stages.stage_ids import Plan, Stage
from ratplus.training.errors import Interrupted, PeerFailed
from ratplus.training.ranks import Place, micro_batches

if TYPE_CHECKING:
    from ratplus.training.team import Team


class SharedCell(Protocol):
    """What ranks need of `stages.cell.Cell`."""

    config: Config
    plan: Plan

    def __init__(self, config: Config, surroundings: Surroundings): ...

    def run_stages(self, last: str, team: Team | None = None) -> Record: ...

    def train_along(self, stage: Stage, first: int, team: Team) -> None: ...


def run_shared(cell: SharedCell, place: Place, last: str) -> Record:
    """This rank's part of running a cell up to the stage `last`; every rank gets the record that rank 0 ends with.

    Raises:
        LayoutError: ranks cannot share the rows of a stage's batch.
        PeerFailed: on other ranks than the one that failed first.
    """
    if place.rank > 0:
        return follow(cell, place)
    config = cell.config
    for name in STAGES[: STAGES.index(last) + 1]:
        given = name == "pretrain" and config.model.init_from
        if name in TRAINING and getattr(cell.plan, name) is not None and not given:
            micro_batches(getattr(config.train, name), place.world, f"train.{name}")
    from ratplus.training.team import Team

    def start(other: Place) -> BaseProcess:
        # Not a fork of this process, with which it would share CUDA and thread state, but of a fresh one that has
        # imported torch and Lightning once for all ranks.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["ratplus.stages.rank_setup", "ratplus.stages.cell", "ratplus.training.run", "ratplus.training.team"]
        )
        words = (type(cell), config, other, dict(os.environ))
        process = context.Process(target=_rank_process, args=words, name=f"ratplus-rank-{other.rank}", daemon=True)
        process.start()
        return process

    with Team(place, config.trainer, config.run, start) as team:
        record = team.result = cell.run_stages(last, team)
    return record


def follow(cell: SharedCell, place: Place) -> Record:
    """A rank's part other than 0's: train along as rank 0 orders; returns the record that rank 0 ends with."""
    from ratplus.training.team import Team

    team = Team(place, cell.config.trainer, cell.config.run)
    for order in team.orders():
        stage = getattr(cell.plan, order["stage"])
        with team.together():
            if stage.id != order["id"]:
                raise ValueError(
                    f"{stage.name}: its id is {stage.id} here and {order['id']} on rank 0, so code, config or data "
                    "differ between the two; start all ranks with the same command, code and corpus"
                )
            cell.train_along(stage, order["first"], team)
    assert team.result is not None  # rank 0 leaves without an error with a record only
    return team.result


def _rank_process(make_cell: type[SharedCell], config: Config, place: Place, environment: dict[str, str]) -> None:
    """A rank that rank 0 started on its own machine."""
    os.environ.clear()  # the process from which ranks are forked may be older than what has been set since
    os.environ.update(environment)
    # torch's sockets would print a stack trace when rank 0 goes.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if config.run.threads is not None:
        import torch

        torch.set_num_threads(config.run.threads)
    try:
        follow(make_cell(config, Surroundings(Path())), place)
    except Interrupted as error:
        sys.exit(128 + error.number)
    except (PeerFailed, KeyboardInterrupt):
        sys.exit(1)  # rank 0 says what happened
