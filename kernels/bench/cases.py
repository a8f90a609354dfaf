"""What the operator benchmark measures: shapes and candidates, with the work that each case needs at least."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels import decode_attention, dilated_attention, gated_scan
from ratplus.kernels.bench import peers
from ratplus.kernels.bench.backends import BACKENDS, dense_on
from ratplus.kernels.bench.timing import Run, available_memory_bytes
from ratplus.kernels.decode.layout import slot_count

Triple = tuple[int | None, int, int]  # dilation, window, sinks

DENSE = "dense SDPA"


@dataclass(frozen=True)
class Selection:
    """A static pattern and `top` blocks of `block` keys that each query chooses."""

    static: Triple
    top: int
    block: int
    score: str

    @property
    def label(self) -> str:
        """As patterns are called: top8x64, quest16x64, D64-top8x64."""
        word = {"mean": "top", "bounds": "quest", "random": "random"}[self.score]
        static = "" if self.static == (None, 0, 0) else label(self.static) + "-"
        return f"{static}{word}{self.top}x{self.block}"


SELECTIONS = (
    Selection((None, 0, 0), 8, 64, "mean"), Selection((None, 0, 0), 16, 64, "bounds"),
    Selection((64, 0, 0), 8, 64, "mean"),
)  # fmt: skip


@dataclass(frozen=True)
class Shapes:
    """What is measured. The defaults are the paper's: T tokens in batches that make 262,144, d_head 128.

    Attributes:
        scan_batches: batch sizes of the scan; empty: as many sequences as make `tokens`.
        backward_lengths: where backward passes are timed too.
        peer_lengths, peer_patterns, peer_d_models: where other formulations are timed; each costs a compilation.
        dense_beside_flops: dense attention of more FLOPs is timed once, with the dense pattern, not beside every one.
        repeats, budget_s: calls of a candidate, and the seconds that they may take.
        peers_only: nothing but the plans that have peers.
        selections: selections of blocks, timed last, with the first of d_models, and with the first of decode_batches
            and a single sequence, up to a length (block_cases.py).
        block_shapes, block_decode_shapes, block_backward_lengths: (sequences, tokens) at which block_phase.py measures
            selections, and of which lengths the backward pass too.
    """

    d_models: tuple[int, ...] = (4096, 2048)
    d_head: int = 128
    tokens: int = 262144
    lengths: tuple[int, ...] = (4096, 262144, 65536, 16384)
    patterns: tuple[Triple, ...] = ((1, 0, 0), (4, 0, 0), (16, 0, 0), (64, 0, 0), (16, 256, 0), (64, 256, 0))
    scan_batches: tuple[int, ...] = ()
    decode_batches: tuple[int, ...] = (1, 128, 1024)
    backward_lengths: tuple[int, ...] = (4096, 16384, 65536)
    peer_lengths: tuple[int, ...] = (4096, 262144)
    peer_patterns: tuple[Triple, ...] = ((16, 0, 0),)
    peer_d_models: tuple[int, ...] = (4096,)
    dense_beside_flops: float = 1e14
    repeats: int = 20
    budget_s: float = 0.5
    peers_only: bool = False
    selections: tuple[Selection, ...] = SELECTIONS
    block_shapes: tuple[tuple[int, int], ...] = ((4, 16384), (1, 65536))
    block_backward_lengths: tuple[int, ...] = (16384,)
    block_decode_shapes: tuple[tuple[int, int], ...] = ((1, 65536), (32, 16384), (1, 4096), (8, 4096))
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16

    def with_peers(self, d_model: int, length: int, pattern: Triple | None = None) -> bool:
        """Whether other formulations are timed at this shape (and pattern)."""
        here = d_model in self.peer_d_models and length in self.peer_lengths
        return here and (pattern is None or (pattern in self.peer_patterns and pattern[0] not in (None, 1)))


CPU_SHAPES = Shapes(
    d_models=(1024,), d_head=64, tokens=4096, lengths=(4096,),
    patterns=((1, 0, 0), (16, 256, 0), (64, 0, 0), (16, 0, 0), (None, 256, 4)),
    scan_batches=(1, 4), decode_batches=(8,), backward_lengths=(), peer_lengths=(), dense_beside_flops=float("inf"),
    repeats=7, budget_s=10.0, device="cpu", dtype=torch.float32,
)  # fmt: skip


@dataclass
class Case:
    """One thing to measure: its candidates, and the bytes and floating-point operations that it needs at least."""

    op: str
    shape: str
    pattern: str
    least_bytes: float
    flops: float
    candidates: dict[str, Run] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Run]) -> None:
        """Adds a candidate, or why it can't run here."""
        try:
            run = make()
            run()  # compiles
            self.candidates[name] = run
        except Exception as error:  # a peer may fail in any way; it must not end the benchmark
            self.skipped[name] = reason(error)


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def add_dense(case: Case, device: str, attend: Callable[[], Run], suffix: str = "") -> None:
    """Dense attention as a candidate: on CUDA once for each of torch's kernels, since the faster one is what counts."""
    if device != "cuda":
        case.add(DENSE + suffix, attend)
        return
    for backend in BACKENDS:

        def on_backend(backend: str = backend) -> Run:
            with dense_on(backend):
                run = attend()  # a captured graph, or a forward pass whose backward pass is timed

            def call():
                with dense_on(backend):
                    return run()

            return call

        case.add(f"{DENSE} ({backend}){suffix}", on_backend)


@dataclass(frozen=True)
class Plan:
    """Cases that share their inputs; nothing is made before `cases` is called, and its cases come one by one."""

    op: str
    shape: str
    pattern: str
    cases: Callable[[], Iterator[Case]]
    with_peers: bool = False


def plans(shapes: Shapes) -> Iterator[Plan]:
    """Everything that is measured, in an order that has the most telling shapes first."""
    for plan in _all_plans(shapes):
        if plan.with_peers or not shapes.peers_only:
            yield plan


def _all_plans(shapes: Shapes) -> Iterator[Plan]:
    for d_model in shapes.d_models:
        for length in shapes.lengths:
            for batch in shapes.scan_batches or (batch_of(shapes, length),):
                shape = f"B{batch} T{length} d{d_model}"
                make = partial(_scan_cases, shapes, d_model, length, batch, shape)
                yield Plan("scan", shape, "-", make, shapes.with_peers(d_model, length))
            batch = batch_of(shapes, length)
            for pattern in shapes.patterns:
                shape = f"B{batch} T{length} d{d_model}"
                make = partial(_attention_cases, shapes, d_model, length, batch, pattern, shape)
                with_peers = shapes.with_peers(d_model, length, pattern)
                yield Plan("attention", shape, label(pattern), make, with_peers)
            for batch in shapes.decode_batches:
                for pattern in shapes.patterns:
                    shape = f"B{batch} T{length} d{d_model}"
                    make = partial(_decode_cases, shapes, d_model, length, batch, pattern, shape)
                    yield Plan("decode", shape, label(pattern), make)


def label(pattern: Triple) -> str:
    """Short name of a pattern, such as D16-W256 or stream-W256-I4."""
    dilation, window, sinks = pattern
    parts = ["stream" if dilation is None else f"D{dilation}"]
    return "-".join(parts + [f"W{window}"] * (window > 0) + [f"I{sinks}"] * (sinks > 0))


def batch_of(shapes: Shapes, length: int) -> int:
    return max(1, shapes.tokens // length)


def gate_views(shapes: Shapes, batch: int, length: int, d_model: int, parts: int) -> list[Tensor]:
    """Leaf-like views [B, H, T, d] of one projection, N(0, 1): gates between 0.1 and 0.9 mostly."""
    z = torch.randn(batch, length, parts * d_model, device=shapes.device, dtype=shapes.dtype)
    heads = d_model // shapes.d_head
    return [x.unflatten(-1, (heads, shapes.d_head)).transpose(1, 2) for x in z.chunk(parts, dim=-1)]


def rope_tables(shapes: Shapes, length: int) -> tuple[Tensor, Tensor]:
    frequency = 10000.0 ** (
        -torch.arange(0, shapes.d_head, 2, device=shapes.device, dtype=torch.float64) / shapes.d_head
    )
    angle = torch.arange(length, device=shapes.device).unsqueeze(-1) * frequency
    return angle.cos().float().repeat(1, 2), angle.sin().float().repeat(1, 2)


def backward_of(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> Run:
    """The backward pass alone, repeatable."""
    gradients = [torch.randn_like(x) for x in outputs]
    return lambda: torch.autograd.grad(outputs, inputs, gradients, retain_graph=True)


def _scan_cases(shapes: Shapes, d_model: int, length: int, batch: int, shape: str) -> Iterator[Case]:
    """The recurrence reads logit, k, v and writes two tensors: a copy that moves as many bytes is its floor."""
    with_peers, on_gpu = shapes.with_peers(d_model, length), shapes.device == "cuda"
    if with_peers:
        torch.compiler.reset()  # every shape compiles anew, and after a few of them dynamo would fall back to eager
    logit, k, v = gate_views(shapes, batch, length, d_model, 3)
    cos, sin = rope_tables(shapes, length)
    size = k.numel() * k.element_size()
    forward = Case("scan forward", shape, "-", 5 * size, 0)
    forward.add("ours", lambda: lambda: gated_scan(logit, k, v, rope=(cos, sin)))
    source = torch.randn(5 * k.numel() // 2, device=shapes.device, dtype=shapes.dtype)
    target = torch.empty_like(source)
    forward.add("copy_ of the same bytes", lambda: lambda: target.copy_(source))
    if not on_gpu:
        # A result needs fresh memory, which costs a CPU about as much as filling it; `clone` pays for that too.
        forward.add("clone of the same bytes", lambda: source.clone)
    scan = peers.compiled(peers.paper_scan) if on_gpu else peers.paper_scan
    if with_peers:
        forward.add("paper (associative_scan)", lambda: lambda: scan(logit, k, v, cos, sin))
        forward.add("fla HGRN chunk", lambda: peers.fla_hgrn(logit, k, v))
        forward.add("accelerated-scan", lambda: peers.accelerated_scan(logit, k, v))
    yield forward
    if length not in shapes.backward_lengths:
        return
    del forward
    leaves = [x.detach().requires_grad_() for x in (logit, k, v)]
    own_logit, own_k, own_v = leaves
    backward = Case("scan backward", shape, "-", 10 * size, 0)
    backward.add("ours", lambda: backward_of(gated_scan(own_logit, own_k, own_v, rope=(cos, sin))[:2], leaves))
    if with_peers:
        backward.add("paper (associative_scan)", lambda: backward_of(scan(*leaves, cos, sin), leaves))
    yield backward


def visible_pairs(length: int, dilation: int | None, window: int, sinks: int) -> float:
    """Visible (query, key) pairs of one head."""
    kept = () if dilation is None else range(dilation - 1, length, dilation)
    far = sum(max(0, length - 1 - window - p) for p in kept if p >= sinks)
    far += sum(max(0, length - 1 - window - p) for p in range(min(sinks, length)))
    near = sum(min(t, window) + 1 for t in range(min(length, window + 1))) + max(0, length - window - 1) * (window + 1)
    return far + near


def _attention_cases(
    shapes: Shapes, d_model: int, length: int, batch: int, pattern: Triple, shape: str
) -> Iterator[Case]:
    with_peers, on_gpu = shapes.with_peers(d_model, length, pattern), shapes.device == "cuda"
    if with_peers:
        torch.compiler.reset()
    logit, q, k, v = gate_views(shapes, batch, length, d_model, 4)
    cos, sin = rope_tables(shapes, length)
    size, flops = q.numel() * q.element_size(), 4.0 * batch * d_model * visible_pairs(length, *pattern)
    dilation, window, sinks = pattern
    # Only dilated patterns have peers.
    settings = (cast(int, dilation), window, sinks, length, shapes.device, on_gpu)
    paper = lru_cache(lambda: peers.PaperAttention(*settings))  # made when first asked for: its masks may not fit
    one_mask = lru_cache(lambda: peers.OneMaskAttention(*settings))
    dense = partial(F.scaled_dot_product_attention, is_causal=True)
    long = 4.0 * batch * d_model * visible_pairs(length, 1, 0, 0) > shapes.dense_beside_flops

    def add_ours_and_dense(case: Case, ours: Callable[[], Run], theirs: Callable[[], Run]) -> None:
        if pattern[0] == 1 and long:
            case.skipped["ours"] = f"the dense pattern runs as {DENSE}"
        else:
            case.add("ours", ours)
        if pattern[0] != 1 and long:
            case.skipped[DENSE] = "takes long: timed once for this shape, with the pattern D1"
        else:
            add_dense(case, shapes.device, theirs)

    forward = Case("attention forward", shape, label(pattern), 4 * size, flops)
    add_ours_and_dense(
        forward, lambda: lambda: dilated_attention(q, k, v, *pattern), lambda: lambda: dense(q, k, v)
    )  # fmt: skip
    if with_peers:
        forward.add("paper (two FlexAttention passes)", lambda: partial(paper(), q, k, v))
        forward.add("FlexAttention, one mask", lambda: partial(one_mask(), q, k, v))
        forward.add("paper: its block masks alone", lambda: lambda: peers.PaperAttention(*settings))
    yield forward
    del forward

    if with_peers or on_gpu:
        both = Case("recurrence and attention", shape, label(pattern), 5 * size, flops)
        scan = peers.compiled(peers.paper_scan) if on_gpu else peers.paper_scan

        def ours():
            k_tilde, v_tilde, _ = gated_scan(logit, k, v, rope=(cos, sin))
            return dilated_attention(q, k_tilde, v_tilde, *pattern)

        both.add("ours", lambda: ours)
        if with_peers:
            both.add("paper", lambda: lambda: paper()(q, *scan(logit, k, v, cos, sin)))
            if not long:
                add_dense(both, shapes.device, lambda: lambda: dense(q, k, v), " alone")
        yield both
        del both

    if length in shapes.backward_lengths:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        own_q, own_k, own_v = leaves
        backward = Case("attention backward", shape, label(pattern), 8 * size, 2.5 * flops)
        add_ours_and_dense(
            backward,
            lambda: backward_of((dilated_attention(own_q, own_k, own_v, *pattern),), leaves),
            lambda: backward_of((dense(own_q, own_k, own_v),), leaves),
        )
        if with_peers:
            backward.add("paper (two FlexAttention passes)", lambda: backward_of((paper()(*leaves),), leaves))
        yield backward


def _decode_cases(
    shapes: Shapes, d_model: int, length: int, batch: int, pattern: Triple, shape: str
) -> Iterator[Case]:  # fmt: skip
    """The step at the last position, in a CUDA graph: one launch hides in another's latency no longer."""
    heads, item = d_model // shapes.d_head, shapes.dtype.itemsize
    slots = heads * slot_count(*pattern, length)
    row_bytes = 2 * batch * shapes.d_head * item  # of one slot, key and value
    cache_bytes, dense_bytes = row_bytes * slots, row_bytes * heads * length
    # Read once: what the step sees besides its own token, at most a slot less than there are. The token itself:
    # q, k, v, logit and the output in the cache's type, and the float32 state of k and v, read and written.
    token_bytes = batch * d_model * (5 * item + 16)
    case = Case("decode", shape, label(pattern), cache_bytes + token_bytes, 2 * cache_bytes / item)
    position = length - 1

    def random(*size: int, scale: float = 1.0) -> Tensor:
        return torch.empty(*size, device=shapes.device, dtype=shapes.dtype).normal_(std=scale)

    def ours() -> Run:
        token = [random(batch, heads, shapes.d_head) for _ in range(4)]
        keys, values = (random(batch, slots, shapes.d_head) for _ in range(2))
        state = tuple(torch.zeros(batch, heads, shapes.d_head, device=shapes.device) for _ in range(2))
        positions = torch.full((batch,), position, device=shapes.device)
        rope = rope_tables(shapes, length)
        step = partial(decode_attention, *token, keys, values, state, positions, *pattern, rope=rope)
        return graphed(step) if shapes.device == "cuda" else step

    def dense() -> Run:
        query = random(batch, heads, 1, shapes.d_head)
        keys, values = (random(batch, heads, length, shapes.d_head) for _ in range(2))
        attend = partial(F.scaled_dot_product_attention, query, keys, values)
        return graphed(attend) if shapes.device == "cuda" else attend

    def fits(name: str, needed: float) -> bool:
        free = available_memory_bytes(shapes.device)
        if free is not None and needed > 0.8 * free:
            case.skipped[name] = f"its cache takes {needed / 1e9:.0f} GB"
            return False
        return True

    if fits("ours", cache_bytes):
        case.add("ours", ours)
    if fits(f"{DENSE}, one query", 2 * dense_bytes):  # a cache for each of torch's kernels
        add_dense(case, shapes.device, dense, ", one query")
    yield case


def graphed(run: Run) -> Run:
    """`run` captured in a CUDA graph."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    cast(Any, graph).inputs = run  # keeps the captured tensors alive
    return graph.replay
