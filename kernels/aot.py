"""Compiles every Triton kernel in every shipped configuration for an H100 (sm_90) without one, and measures the result.

Registers, spills, shared memory and tensor-core instructions show in the machine code, so a regression there shows on
any Linux machine. Must run in a process without TRITON_INTERPRET. `python -m ratplus.kernels.aot` prints the table of
docs/kernels.md.
"""

import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Collection, Iterator

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ratplus.kernels.attention import fused as attention
from ratplus.kernels.attention import fused_backward as attention_backward
from ratplus.kernels.attention import fused_forward as attention_forward
from ratplus.kernels.block_decode import fused as block_decode
from ratplus.kernels.block_decode import fused_kernels as block_decode_kernels
from ratplus.kernels.blocks import fused as blocks
from ratplus.kernels.blocks import fused_backward as blocks_backward
from ratplus.kernels.blocks import fused_forward as blocks_forward
from ratplus.kernels.blocks import fused_scores as block_scores
from ratplus.kernels.blocks import fused_selection as selection
from ratplus.kernels.blocks.settings import Blocks
from ratplus.kernels.decode import fused as decode
from ratplus.kernels.decode import fused_group as decode_group
from ratplus.kernels.decode import fused_kernels as decode_kernels
from ratplus.kernels.scan import fused as scan
from ratplus.kernels.scan import fused_backward as scan_backward
from ratplus.kernels.scan import fused_forward as scan_forward
from ratplus.kernels.triton_support import D_HEADS, DTYPES, unsupported_kind

TARGET = GPUTarget("cuda", 90, 32)
HEADS = 32  # of the paper's 7.6B model; decides how many heads a program of the recurrence takes
# Arguments by name: what isn't here is an int32 size or stride.
TYPES = {
    **dict.fromkeys(("q", "k", "v", "logit", "out", "d_out", "dq", "dk", "dv", "k_out", "v_out"), "*bf16"),
    **dict.fromkeys(("grad_k", "grad_v", "d_logit", "keys", "values"), "*bf16"),
    **dict.fromkeys(("summary", "start", "initial", "final", "d_initial", "cos", "sin", "lse", "delta"), "*fp32"),
    **dict.fromkeys(("k_state", "v_state", "part_acc", "part_max", "part_sum"), "*fp32"),
    **dict.fromkeys(("part_k", "part_v", "sum_k", "sum_v"), "*fp32"),
    **dict.fromkeys(("dilations", "windows", "sinks_of"), "*i32"),
    **dict.fromkeys(("ids", "lists", "counts", "counters", "tops"), "*i32"),
    **dict.fromkeys(("positions", "offsets", "starts", "numbers"), "*i64"),
    **dict.fromkeys(("q_out", "parts"), "*bf16"),
    **dict.fromkeys(("metadata", "scores"), "*fp32"),
    "scale": "fp32",
}
# Descriptors by name: the tensor that each reads, and its box.
BOXES = {
    **dict.fromkeys(("q_boxes", "do_boxes"), ("q", (1, 1, "BM", "D"))),
    **dict.fromkeys(("lse_boxes", "delta_boxes"), ("lse", (1, "BM"))),
}
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
# Where query heads share keys, each leaves its own part of the keys' gradients.
GROUPED_TYPES = TYPES | dict.fromkeys(("dk", "dv"), "*fp32")


def shipped() -> list[tuple[torch.dtype, int]]:
    """Every (dtype, d_head) that the kernels take: the others are refused with the limit."""
    return [(dtype, d_head) for dtype in DTYPES for d_head in D_HEADS if unsupported_kind(d_head, dtype) is None]


def configurations(
    dtype: torch.dtype = torch.bfloat16, d_heads: tuple[int, ...] = (64, 128), every_group: bool = False
) -> Iterator[tuple[str, int, object, dict]]:
    """(name, d_head, kernel, constants and launch options) of everything that ships for these tensors.

    every_group: also each attention kernel with 4 query heads a key. Without it two of them, of d_head 64, stand for
        the rest: only addresses, and the type of dK and dV, differ from the kernels above them.
    """
    for d_head in d_heads:
        for name, kernel, constants in (*_scan(d_head), *_attention(dtype, d_head, 1)):
            yield name, d_head, kernel, constants
        if every_group or d_head == 64:
            for name, kernel, constants in _attention(dtype, d_head, 4):
                if every_group or name in ("attention forward", "attention dKV, far list, split"):
                    yield f"{name}, 4 heads a key", d_head, kernel, constants
        for name, kernel, constants in _decode(dtype, d_head):
            yield name, d_head, kernel, constants
        for name, kernel, constants in _blocks(dtype, d_head):
            yield name, d_head, kernel, constants
    for reverse in (False, True):
        name = "scan carry" + (", reversed" if reverse else "")
        yield name, 0, scan_forward.carry_kernel, {"REVERSE": reverse, "BLOCK": scan.CARRY_BLOCK, "num_warps": 1}


def _scan(d_head: int) -> Iterator[tuple[str, object, dict]]:
    forward, backward = (scan.constants(kind, HEADS, d_head) for kind in ("forward", "backward"))
    yield "scan forward", scan_forward.forward_kernel, forward | {"ROPE": True}
    yield "scan forward, no rotation", scan_forward.forward_kernel, forward | {"ROPE": False}
    summary = scan.constants("forward summary", HEADS, d_head)
    yield "scan forward, summary of a split", scan_forward.forward_summary_kernel, summary
    yield "scan backward", scan_backward.backward_kernel, backward | {"ROPE": True}
    yield "scan backward, no rotation", scan_backward.backward_kernel, backward | {"ROPE": False}
    summary = scan.constants("backward summary", HEADS, d_head) | {"ROPE": True}
    yield "scan backward, summary of a split", scan_backward.backward_summary_kernel, summary


def _attention(dtype: torch.dtype, d_head: int, group: int) -> Iterator[tuple[str, object, dict]]:
    def chosen(kind: str, boxes: bool = True) -> dict:
        size = attention.tiles(kind, d_head, dtype, group)
        size = size if boxes else attention.without_boxes(kind, size)
        return {"BOXES": size.boxes, **size.constants(d_head, group)}

    for kind in ("forward", "forward, long list", "forward, very long list"):
        yield f"attention {kind}", attention_forward.forward_kernel, chosen(kind)
    addresses = chosen("forward, long list", boxes=False)
    yield "attention forward, long list, no boxes", attention_forward.forward_kernel, addresses
    dq = chosen("dq")
    del dq["BOXES"]
    yield "attention dQ", attention_backward.dq_kernel, dq | {"OWN": False}
    yield "attention dQ, and own dK, dV", attention_backward.dq_kernel, dq | {"OWN": True}
    for boxes, name in ((True, ""), (False, ", no boxes")):
        yield f"attention dKV, band{name}", attention_backward.dkv_band_kernel, chosen("dkv, band", boxes)
        # Without boxes a long list takes the tiles of a short one.
        for title, kind in (("far list", "dkv"), ("long list", "dkv, long list"))[: 1 + boxes]:
            far = chosen(kind, boxes)
            for split in (False, True):
                full_title = f"attention dKV, {title}{', split' * split}{name}"
                yield full_title, attention_backward.dkv_far_kernel, far | {"SPLIT": split}
    for kind, name in (("dkv", ""), ("dkv, long list", ", long list")):
        keys = chosen(kind)["BN"]
        combine = {"D": d_head, "BN": keys, "GROUP": group, "num_warps": attention.combine_warps(keys)}
        yield f"attention dKV, combine{name}", attention_backward.dkv_combine_kernel, combine


def _decode(dtype: torch.dtype, d_head: int) -> Iterator[tuple[str, object, dict]]:
    step, short = (
        {"ROPE": True, **decode.constants(kind, 1, dtype, d_head)} for kind in ("single", "single, short parts")
    )
    kernel = decode_kernels.step_kernel
    yield "decode", kernel, step | {"GATED": True, "EQUAL": True, "SPLIT": False}
    yield "decode, split", kernel, short | {"GATED": True, "EQUAL": True, "SPLIT": True}
    yield "decode, split, long parts", kernel, step | {"GATED": True, "EQUAL": True, "SPLIT": True}
    yield "decode, per-head slots", kernel, short | {"GATED": True, "EQUAL": False, "SPLIT": True}
    yield "decode, no recurrence", kernel, step | {"GATED": False, "EQUAL": True, "SPLIT": False}
    for group in (4, HEADS):  # grouped-query and multi-query attention
        kind, _splits = decode.choose(group, dtype, batch=1, heads=1, slots=4096)
        constants = {"ROPE": True, **decode.constants(kind, group, dtype, d_head)}
        constants |= {"GATED": True, "EQUAL": group == HEADS, "SPLIT": True}
        yield f"decode, split, {group} heads a key", decode_group.group_step_kernel, constants
    yield "decode, combine", decode_kernels.combine_kernel, {"D": d_head, "num_warps": 1}


def _blocks(dtype: torch.dtype, d_head: int) -> Iterator[tuple[str, object, dict]]:
    """Of blocks of 64 keys, 16 a query: other sizes change loop bounds alone."""
    chosen, slots = Blocks(64), 16
    kinds = ("forward", "dq", "dkv", "static dkv")
    one, four = (
        {kind: blocks.tiles(d_head, dtype, kind).constants(d_head, group, chosen, slots) for kind in kinds}
        for group in (1, 4)
    )
    yield "blocks forward", blocks_forward.forward_kernel, one["forward"]
    yield "blocks forward, 4 heads a key", blocks_forward.forward_kernel, four["forward"]
    yield "blocks dQ", blocks_backward.dq_kernel, one["dq"]
    yield "blocks dKV, chosen", blocks_backward.dkv_chosen_kernel, one["dkv"]
    for part in ("far", "band"):
        yield f"blocks dKV, {part}", getattr(blocks_backward, f"dkv_{part}_kernel"), one["static dkv"]
    if dtype in block_scores.BITS:
        for group in (1, 4):
            scored = block_scores.constants(d_head, dtype, group, chosen)
            yield "blocks scores, mean" + (", 4 heads a key" * (group > 1)), block_scores.scores_kernel, scored
    yield "blocks selection", selection.choose_kernel, selection.constants(chosen, 1024)
    scored = {"D": d_head, "GROUP": 1, "BOUNDS": True, "SPAN": 64, "BN": selection.SCORED}
    yield "blocks decode, scores", selection.score_kernel, scored | {"num_warps": selection.SCORE_WARPS}
    token = {"D": d_head, "ROPE": True, "GATED": True, "GROUP": 1, "num_warps": block_decode.TOKEN_WARPS}
    yield "blocks decode, token", block_decode_kernels.token_kernel, token
    summary = {"D": d_head, "BLOCK": 64, "STRIDE": 1, "BN": block_decode.METADATA_KEYS, "BOUNDS": False}
    yield "blocks decode, metadata", block_decode_kernels.metadata_kernel, summary | {"num_warps": 1}
    for group in (1, 4):
        walk = {"D": d_head, "SPLIT": True, **block_decode.constants(group, slots, chosen, dtype)}
        yield f"blocks decode, split, {group} heads a key", block_decode_kernels.attend_kernel, walk


def compiled(kernel, constants: dict, dtype: torch.dtype = torch.bfloat16, sizes_are_one: bool = False):
    """One kernel as Triton compiles it, for tensors of that dtype.

    sizes_are_one: for one sequence with one head, where Triton makes both a constant, which is another type inside a
    kernel. (Sizes that change from call to call, like the length, are exempt from that.)
    """
    options = {name: constants[name] for name in ("num_warps", "num_stages", "maxnreg") if name in constants}
    constants = {name: value for name, value in constants.items() if name not in options}
    if sizes_are_one:
        sizes = {param.name for param in kernel.params if not param.do_not_specialize}
        sizes -= {*constants, *TYPES, *BOXES}
        constants = constants | {name: 1 for name in sizes if not _is_stride(name)}
    types = GROUPED_TYPES if constants.get("GROUP", 1) > 1 else TYPES
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in BOXES and not constants["BOXES"]:
            constants = constants | {name: None}
        tensor, box = BOXES.get(name, (name, ()))
        signature[name] = "constexpr" if name in constants else types.get(tensor, "i32")
        if signature[name] == "*bf16":
            signature[name] = POINTERS[dtype]
        if name in BOXES and name not in constants:
            sizes = ",".join(str(constants.get(size, size)) for size in box)
            signature[name] = f"tensordesc<{signature[name][1:]}[{sizes}]>"
        # Pointers and strides are multiples of 16, as they are for every d_head that the kernels take.
        if signature[name].startswith("*") or _is_stride(name):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=TARGET, options=options)


def measure(code) -> dict:
    """What a kernel takes: registers a thread, bytes of stack and shared memory, instructions, and tensor-core ones."""
    cubin, ptx = code.asm["cubin"], code.asm["ptx"]
    usage = _resource_usage(cubin)
    return {
        "registers": _number_after("REG:", usage),
        "stack_bytes": _number_after("STACK:", usage),
        "shared_bytes": code.metadata.shared,
        "instructions": _executable_bytes(cubin) // 16,  # each of sm_90's is that long
        "tensor_core": len(re.findall(r"^\s*(?:@\S+\s+)?w?g?mma\.(?:mma_async|sync)", ptx, re.MULTILINE)),
    }


def _number_after(word: str, text: str) -> int:
    found = re.search(rf"{word}(\d+)", text)
    assert found is not None, text
    return int(found[1])


def _executable_bytes(elf: bytes) -> int:
    """Size of the sections with machine code, padding included. (Disassembling would take as long as compiling.)"""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_bytes, entries = struct.unpack_from("<HH", elf, 0x3A)
    executable = 4  # section flag
    sections = [struct.unpack_from("<IIQQQQ", elf, table + n * entry_bytes) for n in range(entries)]
    return sum(size for _name, _kind, flags, _address, _offset, size in sections if flags & executable)


def _is_stride(name: str) -> bool:
    return name.endswith(("_b", "_h", "_t"))


def report(
    dtype: torch.dtype = torch.bfloat16,
    d_heads: tuple[int, ...] = (64, 128),
    every_group: bool = False,
    only: Collection[str] | None = None,
) -> list[dict]:
    """`measure` of `configurations`, with kernel, d_head (0: independent of it) and dtype. only: names (None: all)."""
    _refuse_the_interpreter()
    return [
        {"kernel": name, "d_head": d_head, "dtype": str(dtype).removeprefix("torch."), **measured}
        for name, d_head, kernel, constants in configurations(dtype, d_heads, every_group)
        if only is None or name in only
        for measured in [measure(compiled(kernel, constants, dtype))]
    ]


def compile_for_sizes_of_one() -> int:
    """Compiles every kernel for one sequence with one head (of 64: types don't depend on it); how many."""
    _refuse_the_interpreter()
    chosen = [(kernel, constants) for _, _, kernel, constants in configurations(d_heads=(64,))]
    for kernel, constants in chosen:
        compiled(kernel, constants, sizes_are_one=True)
    return len(chosen)


def table(rows: list[dict]) -> str:
    """`report` in Markdown, as docs/kernels.md has it."""
    lines = [
        "| kernel | d_head | registers | stack bytes | shared KB | instructions | tensor-core |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        values = (row["kernel"], row["d_head"] or "-", row["registers"], row["stack_bytes"])
        values += (round(row["shared_bytes"] / 1024), row["instructions"], row["tensor_core"])
        lines.append("| " + " | ".join(map(str, values)) + " |")
    return "\n".join(lines)


def _refuse_the_interpreter() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("kernels/aot.py compiles kernels: run it in a process without TRITON_INTERPRET=1")


def _resource_usage(cubin: bytes) -> str:
    """What the tool that Triton brings says about a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    print(table(report()))
