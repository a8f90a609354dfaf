"""Timing of candidates that take turns, memory at a call's peak, and what the device can do at best."""

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Run = Callable[[], object]

_QUANTILES = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
# Below three samples there is no spread to speak of.
LEAST_REPEATS = 3
# Writing so much empties an H100's L2 cache many times over, and keeps the device busy (0.3 ms) while the host prepares
# the call, whose launches would else be timed too.
_FLUSH_BYTES = 1 << 30
_MEMORY_FACTS = "/proc/meminfo"


@dataclass(frozen=True)
class Times:
    """Milliseconds of a call: quantiles over `repeats` calls."""

    p20: float
    p50: float
    p80: float
    repeats: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Times":
        p20, p50, p80 = torch.tensor(samples, dtype=torch.float64).quantile(_QUANTILES).tolist()
        return cls(p20, p50, p80, len(samples))

    def over(self, parts: int) -> "Times":
        """The times of one of `parts` equal parts of a call."""
        return Times(self.p20 / parts, self.p50 / parts, self.p80 / parts, self.repeats)


@dataclass(frozen=True)
class Ceilings:
    """What the device did at best in this run.

    Attributes:
        copy_gb_s: bytes read and written by a large copy, 1e9 a second.
        matmul_tflop_s: FLOPs of a large product of two matrices in the benchmark's dtype, 1e12 a second.
    """

    copy_gb_s: float
    matmul_tflop_s: float

    def limit_ms(self, least_bytes: float, flops: float) -> float:
        """Milliseconds below which work of so many bytes and FLOPs can't come here (the larger of the two)."""
        return max(least_bytes / self.copy_gb_s / 1e6, flops / self.matmul_tflop_s / 1e9)


def interleaved(
    runs: Sequence[Run],
    device: str,
    repeats: int,
    budget_s: float,
    *,
    before: Sequence[Run] | None = None,
    cold: bool = True,
    dirty: bool = True,
    warm: bool = True,
) -> list[Times]:
    """Times of every candidate; they take turns, so that clocks, temperature and neighbours change for all alike.

    After a warm-up call (if `warm`) and a probe, a candidate is called `repeats` times, or as often as fits `budget_s`
    seconds, but LEAST_REPEATS times at least. On CUDA: events around each call, nothing waits for the host in between;
    `cold` calls find an L2 cache that was flushed by writing, so that they also pay for writing back what it holds (up
    to 50 MB on an H100); not `dirty`: by reading, as behind a kernel that reads weights. `before`: what each candidate
    needs done before a call, not timed.
    Raises ValueError if repeats is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats: got {repeats}; it must be ≥ 1")
    clock = _cuda_clock(cold, dirty) if device == "cuda" else _host_clock
    before = before or [lambda: None] * len(runs)
    for _ in range(2 if warm else 1):
        probes = [read() for read in [clock(run, prepare) for run, prepare in zip(runs, before)]]
    least = min(LEAST_REPEATS, repeats)
    counts = [max(least, min(repeats, int(1e3 * budget_s / max(probe, 1e-6)))) for probe in probes]
    readings: list[list[Callable[[], float]]] = [[] for _ in runs]
    for turn in range(max(counts)):
        for run, prepare, count, taken in zip(runs, before, counts, readings):
            if turn < count:
                taken.append(clock(run, prepare))
    return [Times.of([read() for read in taken]) for taken in readings]


def _host_clock(run: Run, prepare: Run) -> Callable[[], float]:
    prepare()
    start = time.perf_counter()
    run()
    elapsed = 1e3 * (time.perf_counter() - start)
    return lambda: elapsed


def _cuda_clock(cold: bool, dirty: bool) -> Callable[[Run, Run], Callable[[], float]]:
    room = torch.cuda.get_device_properties().total_memory // 32
    flush = torch.zeros(min(_FLUSH_BYTES, room) // 4 if cold else 0, dtype=torch.float32, device="cuda")
    empty_l2 = flush.zero_ if dirty else flush.sum

    def clock(run: Run, prepare: Run) -> Callable[[], float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        prepare()
        empty_l2()
        start.record()
        run()
        end.record()

        def read() -> float:
            end.synchronize()
            return start.elapsed_time(end)

        return read

    return clock


def measure_ceilings(device: str, dtype: torch.dtype, small: bool = False) -> Ceilings:
    """The copy's bandwidth and the product's rate on this device; `small` (for tests) measures nothing of worth."""
    large = device == "cuda"
    elements, n = (1 << 16, 64) if small else (1 << 29, 8192) if large else (1 << 25, 1024)
    source = torch.randn(elements, device=device, dtype=dtype)
    target = torch.empty_like(source)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    copy, product = interleaved([lambda: target.copy_(source), lambda: a @ b], device, 20, 1.0)
    moved = 2 * source.numel() * source.element_size()
    # A ceiling is what was possible, so the quick end of the samples.
    return Ceilings(copy_gb_s=moved / copy.p20 / 1e6, matmul_tflop_s=2 * n**3 / product.p20 / 1e9)


def peak_bytes(run: Run, device: str) -> int:
    """Memory that one call needs at its peak beyond what is allocated before it, its result included.

    On CUDA by the allocator's counter, on a CPU from the allocations that PyTorch's profiler sees (torch's own: what a
    library allocates inside one operation isn't seen).
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        held = run()  # its result counts
        torch.cuda.synchronize()
        del held
        return torch.cuda.max_memory_allocated() - before
    only_cpu = [torch.profiler.ProfilerActivity.CPU]
    with _without_native_stderr(), torch.profiler.profile(activities=only_cpu, profile_memory=True) as profile:
        held = run()
    del held
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@contextmanager
def _without_native_stderr() -> Generator[None]:
    """Some builds of the profiler write trace lines straight to the process's standard error."""
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def available_memory_bytes(device: str) -> int | None:
    """Memory that could still be allocated: on CUDA free memory and the allocator's reserve, else the machine's RAM.

    None where the system doesn't tell, as macOS.
    """
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    try:
        with open(_MEMORY_FACTS) as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None


def device_name(device: str) -> str:
    """Of the GPU; else the processor's model as Linux knows it, or `cpu`."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return "cpu"


def check_device(device: str) -> None:
    """Raises ValueError for anything but `cpu` and `cuda`, and for `cuda` where there is none."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device: got {device!r}; allowed: cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no CUDA device; use --device cpu")
