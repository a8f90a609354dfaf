"""What the GPU benchmark measures: operators, shapes and candidates, with the work that each case needs at least."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels import bench_peers as peers
from ratplus.kernels import decode_attention, dilated_attention, gated_scan
from ratplus.kernels.decode.layout import slot_count

Run = Callable[[], object]


@dataclass(frozen=True)
class Shapes:
    """What is measured. The defaults are the paper's: T tokens in batches that make 262,144, d_head 128."""

    d_models: tuple[int, ...] = (2048, 4096)
    d_head: int = 128
    tokens: int = 262144
    lengths: tuple[int, ...] = (4096, 16384, 65536, 262144)
    patterns: tuple[tuple[int, int, int], ...] = (
        (1, 0, 0),
        (4, 0, 0),
        (16, 0, 0),
        (64, 0, 0),
        (16, 256, 0),
        (64, 256, 0),
    )
    decode_batches: tuple[int, ...] = (128, 256, 1024, 4096)
    repeats: int = 20
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16


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
            self.skipped[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def cases(shapes: Shapes) -> Iterator[Case]:
    """Every case; inputs of one are freed before those of the next are made."""
    for d_model in shapes.d_models:
        for length in shapes.lengths:
            torch.compiler.reset()  # every shape compiles anew, and after a few of them dynamo would fall back to eager
            yield from _scan_cases(shapes, d_model, length)
            for pattern in shapes.patterns:
                torch.compiler.reset()
                yield from _attention_cases(shapes, d_model, length, pattern)
            for batch in shapes.decode_batches:
                for pattern in shapes.patterns:
                    yield from _decode_cases(shapes, d_model, length, batch, pattern)


def _views(shapes: Shapes, batch: int, length: int, d_model: int, parts: int) -> list[Tensor]:
    """Leaf-like views [B, H, T, d] of one projection; gates as at initialisation (0.02 randn) would be near 0.5."""
    z = torch.randn(batch, length, parts * d_model, device=shapes.device, dtype=shapes.dtype)
    heads = d_model // shapes.d_head
    return [x.unflatten(-1, (heads, shapes.d_head)).transpose(1, 2) for x in z.chunk(parts, dim=-1)]


def _tables(shapes: Shapes, length: int) -> tuple[Tensor, Tensor]:
    frequency = 10000.0 ** (
        -torch.arange(0, shapes.d_head, 2, device=shapes.device, dtype=torch.float64) / shapes.d_head
    )
    angle = torch.arange(length, device=shapes.device).unsqueeze(-1) * frequency
    return angle.cos().float().repeat(1, 2), angle.sin().float().repeat(1, 2)


def _backward_of(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> Run:
    """The backward pass alone, repeatable."""
    gradients = [torch.randn_like(x) for x in outputs]
    return lambda: torch.autograd.grad(outputs, inputs, gradients, retain_graph=True)


def _scan_cases(shapes: Shapes, d_model: int, length: int) -> Iterator[Case]:
    batch = max(1, shapes.tokens // length)
    logit, k, v = _views(shapes, batch, length, d_model, 3)
    cos, sin = _tables(shapes, length)
    shape = f"B{batch} T{length} d{d_model}"
    size = k.numel() * k.element_size()
    forward = Case("scan forward", shape, "-", 5 * size, 0)
    forward.add("ours", lambda: lambda: gated_scan(logit, k, v, rope=(cos, sin)))
    scan = peers.compiled(peers.paper_scan) if shapes.device == "cuda" else peers.paper_scan
    forward.add("paper (associative_scan)", lambda: lambda: scan(logit, k, v, cos, sin))
    forward.add("fla HGRN chunk", lambda: peers.fla_hgrn(logit, k, v))
    forward.add("accelerated-scan", lambda: peers.accelerated_scan(logit, k, v))
    yield forward

    leaves = [x.detach().requires_grad_() for x in (logit, k, v)]
    backward = Case("scan backward", shape, "-", 10 * size, 0)
    backward.add("ours", lambda: _backward_of(gated_scan(*leaves, rope=(cos, sin))[:2], leaves))
    backward.add("paper (associative_scan)", lambda: _backward_of(scan(*leaves, cos, sin), leaves))
    yield backward


def _pairs(length: int, dilation: int, window: int, sinks: int) -> float:
    """Visible (query, key) pairs of one head."""
    far = sum(max(0, length - 1 - window - p) for p in range(dilation - 1, length, dilation) if p >= sinks)
    far += sum(max(0, length - 1 - window - p) for p in range(min(sinks, length)))
    near = sum(min(t, window) + 1 for t in range(min(length, window + 1))) + max(0, length - window - 1) * (window + 1)
    return far + near


def _attention_cases(shapes: Shapes, d_model: int, length: int, pattern: tuple[int, int, int]) -> Iterator[Case]:
    batch = max(1, shapes.tokens // length)
    logit, q, k, v = _views(shapes, batch, length, d_model, 4)
    cos, sin = _tables(shapes, length)
    on_gpu, label = shapes.device == "cuda", "D{}-W{}-I{}".format(*pattern)
    shape = f"B{batch} T{length} d{d_model}"
    size, flops = q.numel() * q.element_size(), 4.0 * batch * d_model * _pairs(length, *pattern)
    settings = (*pattern, length, shapes.device, on_gpu)
    paper = lru_cache(lambda: peers.PaperAttention(*settings))  # made when first asked for: its masks may not fit
    one_mask = lru_cache(lambda: peers.OneMaskAttention(*settings))

    forward = Case("attention forward", shape, label, 4 * size, flops)
    forward.add("ours", lambda: lambda: dilated_attention(q, k, v, *pattern))
    forward.add("dense SDPA", lambda: lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    if pattern[0] > 1:
        forward.add("paper (two FlexAttention passes)", lambda: partial(paper(), q, k, v))
        forward.add("FlexAttention, one mask", lambda: partial(one_mask(), q, k, v))
        forward.add("paper: its block masks alone", lambda: lambda: peers.PaperAttention(*settings))
    yield forward

    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    backward = Case("attention backward", shape, label, 8 * size, 2.5 * flops)
    backward.add("ours", lambda: _backward_of((dilated_attention(*leaves, *pattern),), leaves))
    dense = F.scaled_dot_product_attention
    backward.add("dense SDPA", lambda: _backward_of((dense(*leaves, is_causal=True),), leaves))
    if pattern[0] > 1:
        backward.add("paper (two FlexAttention passes)", lambda: _backward_of((paper()(*leaves),), leaves))
    yield backward

    if pattern[0] > 1:
        both = Case("recurrence and attention", shape, label, 5 * size, flops)
        scan = peers.compiled(peers.paper_scan) if on_gpu else peers.paper_scan

        def ours():
            k_tilde, v_tilde, _ = gated_scan(logit, k, v, rope=(cos, sin))
            return dilated_attention(q, k_tilde, v_tilde, *pattern)

        both.add("ours", lambda: ours)
        both.add("paper", lambda: lambda: paper()(q, *scan(logit, k, v, cos, sin)))
        both.add("dense SDPA alone", lambda: lambda: dense(q, k, v, is_causal=True))
        yield both


def _decode_cases(
    shapes: Shapes, d_model: int, length: int, batch: int, pattern: tuple[int, int, int]
) -> Iterator[Case]:
    """The step at the last position, in a CUDA graph: one launch hides in another's latency no longer."""
    heads = d_model // shapes.d_head
    slots, item = heads * slot_count(*pattern, length), shapes.dtype.itemsize
    cache_bytes = 2 * batch * slots * shapes.d_head * item
    case = Case(
        "decode", f"B{batch} T{length} d{d_model}", "D{}-W{}-I{}".format(*pattern), cache_bytes, 2 * cache_bytes / item
    )
    if shapes.device == "cuda" and cache_bytes > 0.7 * torch.cuda.mem_get_info()[0]:
        case.skipped["ours"] = f"the cache takes {cache_bytes / 1e9:.0f} GB"
        yield case
        return

    def make(name: str) -> Run:
        token = [torch.randn(batch, heads, shapes.d_head, device=shapes.device, dtype=shapes.dtype) for _ in range(4)]
        if name == "ours":
            cache = [
                torch.zeros(batch, slots, shapes.d_head, device=shapes.device, dtype=shapes.dtype) for _ in range(2)
            ]
            state = tuple(torch.zeros(batch, heads, shapes.d_head, device=shapes.device) for _ in range(2))
            positions = torch.full((batch,), length - 1, device=shapes.device)
            rope = _tables(shapes, length)
            return _graphed(lambda: decode_attention(*token, *cache, state, positions, *pattern, rope=rope), shapes)
        dense = [
            torch.zeros(batch, heads, length, shapes.d_head, device=shapes.device, dtype=shapes.dtype) for _ in range(2)
        ]
        return _graphed(lambda: F.scaled_dot_product_attention(token[0].unsqueeze(2), *dense), shapes)

    case.add("ours", lambda: make("ours"))
    dense_bytes = 2 * batch * length * d_model * item
    if shapes.device != "cuda" or dense_bytes < 0.5 * torch.cuda.mem_get_info()[0]:
        case.add("dense SDPA, one query", lambda: make("dense"))
    else:
        case.skipped["dense SDPA, one query"] = f"the dense cache takes {dense_bytes / 1e9:.0f} GB"
    yield case


def _graphed(run: Run, shapes: Shapes) -> Run:
    """`run` captured in a CUDA graph; as it is off CUDA."""
    if shapes.device != "cuda":
        return run
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.inputs = run  # keeps the captured tensors alive
    return graph.replay
