"""Several ranks at one training run: how they start, take orders, meet, agree, and learn of each other's failures.

Rank 0 runs the stages as a single process would: it alone takes locks, evaluates and writes. The other ranks wait for
its orders in a key-value store, train along when told to, and leave when it leaves. A process group stands only while
a run lasts, so a rank can wait for hours (rank 0 may wait for a lock, or evaluate) without any time limit running out.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor

from ratplus.config.run import RunSection, TrainerSection
from ratplus.records.record import Record
from ratplus.training.errors import Interrupted, LayoutError, PeerFailed, words_of
from ratplus.training.ranks import Place

_POLL_SECONDS = 0.1
_MEET_SECONDS = 600.0  # for all ranks to import torch and read their corpus
_COLLECTIVE_SECONDS = 1800.0  # a rank may wait so long for another one, such as rank 0 writing a large state


class Team:
    """The ranks of one cell, seen from one of them: `with Team(...) as team` on rank 0, `team.orders()` elsewhere.

    Args:
        place: of this process.
        start: on rank 0 of ranks that nobody else starts, starts the process of a place.

    Raises:
        LayoutError: more devices are asked for than this machine has.
    """

    def __init__(
        self,
        place: Place,
        trainer: TrainerSection,
        run: RunSection,
        start: Callable[[Place], BaseProcess] | None = None,
    ):
        self.place, self.trainer, self.run, self.start = place, trainer, run, start
        self.cuda = run.accelerator != "cpu" and torch.cuda.is_available()
        if self.cuda and trainer.devices > torch.cuda.device_count():
            raise LayoutError(
                f"trainer.devices: got {trainer.devices}; this process sees {torch.cuda.device_count()} CUDA devices"
            )
        self._store: dist.Store | None = None
        self.children: list[BaseProcess] = []
        self.number = 0  # of the order that is being carried out

    @property
    def store(self) -> dist.Store:
        """What the ranks tell each other; there is one once they have been started."""
        assert self._store is not None
        return self._store

    # ---- rank 0 ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Team:
        self.result: Record | None = None
        if self.place.external:
            self._connect()  # the others are up already, and wait for orders
        return self

    def __exit__(self, kind, error, _traceback) -> None:
        """Dismiss the other ranks, with `result` if all went well."""
        if self._store is None:
            return
        patience = 30.0 if error is None else 5.0
        line = None if error is None else str(error) or kind.__name__
        try:
            self._order({"do": "leave", "record": self.result, "error": line})
            self._wait_until_left(patience)
        except dist.DistError:
            pass  # torchrun's agent has gone, and its ranks with it
        for child in self.children:
            for end in (child.terminate, child.kill):
                if child.is_alive():
                    end()
                    child.join(5)

    @contextmanager
    def training(self, order: dict) -> Generator[None]:
        """Order the others to train along, and do so; `meet()` must be called inside."""
        if self._store is None:
            assert self.start is not None  # where ranks are started from outside, there is a store by now
            store = _store_of_this_machine()
            self._store = store
            for rank in range(1, self.place.world):
                self.children.append(self.start(Place(rank, self.place.world, rank, port=store.port)))
        self._order({"do": "train", **order})
        with self.together():
            yield

    def _order(self, order: dict) -> None:
        self.number += 1
        self.store.set(f"order/{self.number}", json.dumps(order))

    def _wait_until_left(self, seconds: float) -> None:
        """The store lives in this process: it must outlast those who read it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            everyone = self.store.add("left", 0) >= self.place.world - 1
            if everyone if self.place.external else not any(child.is_alive() for child in self.children):
                return
            time.sleep(_POLL_SECONDS)

    # ---- the other ranks -------------------------------------------------------------------------------------------

    def orders(self) -> Iterator[dict]:
        """The training orders of rank 0, up to its leave; `result` is what rank 0 ended with.

        Raises:
            PeerFailed: rank 0 failed or has gone.
        """
        try:
            self._connect()
            while True:
                self.number += 1
                key = f"order/{self.number}"
                while not self.store.check([key]):
                    time.sleep(_POLL_SECONDS)
                order = json.loads(self.store.get(key))
                if order["do"] == "leave":
                    self.store.add("left", 1)
                    break
                yield order
        except dist.DistError as error:
            raise PeerFailed(
                _gone(0, type(error).__name__, "has gone; its record or its own output says why")
            ) from None
        if order["error"] is not None:
            raise PeerFailed(_gone(0, "PeerFailed", f"ended with: {order['error']}"))
        self.result = order["record"]

    # ---- every rank ------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if not self.place.external:
            self._store = dist.TCPStore(self.place.address, self.place.port, is_master=False, wait_for_workers=False)
            return
        os.environ.setdefault("MASTER_ADDR", self.place.address)
        os.environ.setdefault("MASTER_PORT", str(self.place.port))
        place, wait = self.place, timedelta(seconds=_MEET_SECONDS)
        store, _, _ = next(dist.rendezvous("env://", rank=place.rank, world_size=place.world, timeout=wait))
        self._store = dist.PrefixStore("ratplus", store)

    @contextmanager
    def together(self) -> Generator[None]:
        """Around a run's part on one rank: a failure of any rank ends all of them, and is told by all alike.

        Raises:
            PeerFailed: another rank failed, or was killed.
        """
        threads = torch.get_num_threads()
        try:
            if self.run.threads is None and not self.cuda:
                torch.set_num_threads(max(1, threads // self.trainer.devices))
            # Lightning would set its own number of threads where this is not set.
            os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
            yield
        except Interrupted:  # all ranks stop at one step, by agreement
            self._part()
            raise
        except Exception as error:
            cause = self._cause(error)
            if not self.cuda:  # leaving a broken NCCL group can hang; the end of the process ends it as well
                self._part()
            if cause is error:
                raise
            raise cause from error
        else:
            self._part()
        finally:
            torch.set_num_threads(threads)

    def meet(self) -> None:
        """Wait until all ranks are ready for the run, and join them in a process group."""
        ready = f"ready/{self.number}"
        self.store.add(ready, 1)
        deadline = time.monotonic() + _MEET_SECONDS
        while self.store.add(ready, 0) < self.place.world:
            if self.store.check([self._failure_key]) or self._dead_child():
                raise dist.DistError("a rank failed before training began")  # `together` finds out why
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"only {self.store.add(ready, 0)} of {self.place.world} ranks came up within {_MEET_SECONDS:.0f} s"
                )
            time.sleep(_POLL_SECONDS)
        if not self.place.external:
            _meet_on_loopback()
        dist.init_process_group(
            # Numbers to agree on travel between CPUs, so that no step has to wait for the GPU.
            "cpu:gloo,cuda:nccl" if self.cuda else "gloo",
            store=dist.PrefixStore(f"group/{self.number}", self.store),
            rank=self.place.rank,
            world_size=self.place.world,
            timeout=timedelta(seconds=_COLLECTIVE_SECONDS),
        )

    def sums(self, values: list[Tensor]) -> list[Tensor]:
        """Each value summed over all ranks."""
        together = torch.stack([value.detach() for value in values])
        dist.all_reduce(together)
        return list(together.unbind())

    def largest(self, *numbers: int) -> list[int]:
        """Each number's largest value on any rank."""
        together = torch.tensor(numbers)
        dist.all_reduce(together, op=dist.ReduceOp.MAX)
        return together.tolist()

    def lightning(self) -> dict:
        """What makes a Lightning Trainer one rank of this team."""
        if self.trainer.strategy == "ddp":
            # With find_unused_parameters, DDP never regroups its buckets after the first step: a run that continues
            # adds the ranks' gradients in the same order as one that was never stopped.
            strategy = DDPStrategy(find_unused_parameters=True)
        else:
            strategy = ModelParallelStrategy(
                data_parallel_size=self.place.world, tensor_parallel_size=1, save_distributed_checkpoint=False
            )
        return {
            "devices": self.trainer.devices,
            "num_nodes": self.trainer.nodes,
            "strategy": strategy,
            "plugins": [_Environment(self.place)],
            "use_distributed_sampler": False,
        }

    def _part(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    # ---- failures --------------------------------------------------------------------------------------------------

    @property
    def _failure_key(self) -> str:
        return f"failure/{self.number}"

    def _cause(self, error: Exception) -> Exception:
        """`error` itself if it is the first failure of the run, which the others are then told; else its peer's."""
        try:
            if _lost_contact(error):
                # The rank that broke the line has said why, unless it was killed.
                deadline = time.monotonic() + 5.0
                while time.monotonic() < deadline:
                    dead = self._dead_child()  # looked at first: a rank speaks before it ends
                    if self.store.check([self._failure_key]):
                        break
                    if dead is not None:
                        return PeerFailed(dead)
                    time.sleep(_POLL_SECONDS)
            own = _failure(error, self.place.rank)
            first = json.loads(self.store.compare_set(self._failure_key, "", json.dumps(own)))
            return error if first == own else PeerFailed(first)
        except dist.DistError:
            return PeerFailed(_gone(0, "PeerFailed", "has gone; its record or its own output says why"))

    def _dead_child(self) -> dict | None:
        """The failure of a rank that was killed or never came up, as far as this process started it."""
        for rank, child in enumerate(self.children, start=1):
            if child.exitcode is not None and child.exitcode < 0:
                name = signal.Signals(-child.exitcode).name
                return _gone(rank, name, f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else ""))
            if child.exitcode is not None:
                return _gone(rank, "PeerFailed", f"ended with exit code {child.exitcode}; its own output says why")
        return None


def _failure(error: Exception, rank: int) -> dict:
    told = words_of(error)
    return told if rank == 0 else told | {"message": f"rank {rank} on {socket.gethostname()}: {error}"}


def _gone(rank: int, kind: str, what: str) -> dict:
    return {"type": kind, "message": f"rank {rank} {what}", "traceback": []}


def _lost_contact(error: Exception) -> bool:
    """True for what a rank sees when another one's end of the line closes."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error).lower() for word in ("gloo", "nccl", "connection")
    )


class _Environment(ClusterEnvironment):
    """A place as Lightning asks for it; the process group stands before Lightning looks for one."""

    def __init__(self, place: Place):
        super().__init__()
        self.place = place

    creates_processes_externally = True

    @property
    def main_address(self) -> str:
        return self.place.address

    @property
    def main_port(self) -> int:
        return self.place.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.place.world

    def set_world_size(self, size: int) -> None:
        assert size == self.place.world, (size, self.place)

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.place.rank, (rank, self.place)

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.node


def _store_of_this_machine() -> dist.TCPStore:
    """A store that ranks of other machines cannot reach: by itself it listens everywhere, and asks for no key."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        port = listener.getsockname()[1]
        # The store closes the descriptor that it is given.
        return dist.TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=os.dup(listener.fileno())
        )


def _meet_on_loopback() -> None:
    """Let ranks of one machine connect through its loopback interface, unless the user has named another."""
    if Path("/sys/class/net/lo").exists():
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
