"""Machine code of the Triton kernels for an H100, checked without one: spills, shared memory, tensor cores.

Compiled by the pinned Triton and by the oldest that is allowed, 3.6, which is not installed with the rest (an
environment holds one): `make test` puts one into a folder of its own beside the environment's packages. Compiling takes
seconds a kernel, so all that ships is compiled in the slow tests; the others take the kernels with the most code, for
heads of 128.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
OLDEST = "3.6.0"
OLDEST_HOME = Path(os.environ.get("RATPLUS_TRITON_36") or Path(sys.prefix) / "triton-3.6")
PINNED = re.search(r"^triton==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
SHARED_LIMIT = 227 * 1024
NOTHING = {"pinned": 0, "oldest": 0}
# Bytes of stack a thread, at most, that tiles may spill which were measured on an H100 (with Triton 3.6.0) and were
# faster there than every other that was tried: the variants of docs/benchmarks/. All else: none.
ALLOWED_STACK = {
    ("attention dQ, and own dK, dV", "bfloat16", 128): {"pinned": 8, "oldest": 24},
    ("attention dKV, band", "bfloat16", 128): {"pinned": 24, "oldest": 40},
    ("attention dKV, long list", "bfloat16", 128): {"pinned": 32, "oldest": 32},
    ("attention dKV, far list, no boxes", "bfloat16", 128): {"pinned": 56, "oldest": 64},
    ("attention dKV, far list, split, no boxes", "bfloat16", 128): {"pinned": 0, "oldest": 64},
    # Not measured: ptxas stops at 128 registers here, which leave room for two programs on a multiprocessor. Without a
    # pipeline it spills nothing, and every load would be waited for.
    ("attention dQ", "bfloat16", 256): {"pinned": 8, "oldest": 8},
    ("attention dQ, 4 heads a key", "bfloat16", 256): {"pinned": 8, "oldest": 8},
}
ALLOWED_STACK |= {(name, "float16", d_head): bound for (name, _, d_head), bound in ALLOWED_STACK.items()}
# float16 compiles to other registers than bfloat16.
ALLOWED_STACK["attention dQ, and own dK, dV", "float16", 128] = {"pinned": 16, "oldest": 24}
# Triton 3.6 alone, and not measured either.
ALLOWED_STACK |= {
    ("attention dKV, band", "float32", 64): {"pinned": 0, "oldest": 8},
    ("attention dKV, band, no boxes", "float32", 64): {"pinned": 0, "oldest": 8},
    ("attention dKV, band, 4 heads a key", "float32", 64): {"pinned": 0, "oldest": 8},
    ("attention dKV, band, no boxes, 4 heads a key", "float32", 64): {"pinned": 0, "oldest": 8},
    ("blocks dKV, chosen", "float32", 64): {"pinned": 0, "oldest": 8},
    ("blocks dKV, chosen", "float32", 128): {"pinned": 0, "oldest": 8},
    ("blocks dKV, band", "bfloat16", 32): {"pinned": 0, "oldest": 48},
    ("blocks dKV, band", "float16", 32): {"pinned": 0, "oldest": 48},
    ("blocks dKV, far", "bfloat16", 32): {"pinned": 0, "oldest": 72},
    ("blocks dKV, far", "float16", 32): {"pinned": 0, "oldest": 72},
}
# The kernels with the most code of each kind.
QUICK = {
    "pinned": [
        "scan backward", "attention forward, very long list", "attention dQ, and own dK, dV", "attention dKV, band",
        "attention dKV, long list", "decode, split, 4 heads a key", "blocks forward", "blocks dKV, far",
    ],
    "oldest": [
        "scan forward, summary of a split", "attention forward, very long list", "attention dQ, and own dK, dV",
        "attention dKV, band", "attention dKV, long list", "decode, split", "decode, split, 4 heads a key",
    ],
}  # fmt: skip
NO_PRODUCTS = ("attention dKV, combine",)


def run(version: str, code: str):
    """What `code`, which knows `aot`, `torch` and `json` and sets `result`, has found under that Triton."""
    # Without the interpreter, which is switched on when a kernel is decorated.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if version == "oldest":
        if not (OLDEST_HOME / "triton").is_dir():
            pytest.skip(
                f"Triton {OLDEST} isn't in {OLDEST_HOME.name}/ of this environment: `make test` installs it there; "
                f"or pip install --no-deps --target FOLDER triton=={OLDEST} and set RATPLUS_TRITON_36=FOLDER"
            )
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(OLDEST_HOME), environment.get("PYTHONPATH")]))
    program = (
        f"import json, torch, triton\nfrom ratplus.kernels import aot\n{code}\n"
        "print(json.dumps({'triton': triton.__version__, 'result': result}))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    if version == "oldest":
        assert found["triton"] == OLDEST
    elif found["triton"] != PINNED:
        pytest.skip(f"the figures are of Triton {PINNED}, which the constraints pin; this is {found['triton']}")
    return found["result"]


def check(rows: list[dict], version: str) -> None:
    """No spills beyond those allowed, shared memory that an H100 has, products on tensor cores."""
    assert [row for row in rows if row["stack_bytes"] > allowed_stack(row)[version]] == []
    assert [row for row in rows if row["shared_bytes"] > SHARED_LIMIT] == []
    # float32 is multiplied exactly, without them; decoding needs them where several query heads meet the same keys.
    of_products = re.compile("attention|blocks (forward|dQ|dKV|scores)|(blocks )?decode, split, .* heads a key")
    products = [
        row for row in rows
        if row["dtype"] != "float32" and not row["kernel"].startswith(NO_PRODUCTS) and of_products.match(row["kernel"])
    ]  # fmt: skip
    assert [row for row in products if row["tensor_core"] == 0] == []


def allowed_stack(row: dict) -> dict[str, int]:
    return ALLOWED_STACK.get((row["kernel"], row["dtype"], row["d_head"]), NOTHING)


def documented() -> list[str]:
    page = (ROOT / "docs" / "kernels.md").read_text()
    return page[page.index("| kernel | d_head | registers |") :].split("\n\n")[0].splitlines()


@pytest.mark.parametrize("version", ["pinned", pytest.param("oldest", marks=pytest.mark.slow)])
def test_largest_kernels_of_the_papers_head_size(version):
    from ratplus.kernels.aot import table

    rows = run(version, f"result = aot.report(d_heads=(128,), only={QUICK[version]})")
    assert [row["kernel"] for row in rows] == QUICK[version]
    check(rows, version)
    # Two programs of four warps a multiprocessor hide the latency of memory: at most 168 registers a thread.
    assert [row for row in rows if row["kernel"].startswith("decode") and row["registers"] > 168] == []
    if version == "pinned":
        hint = "if the machine code is meant to change, put what `python -m ratplus.kernels.aot` prints in the page"
        assert set(table(rows).splitlines()) <= set(documented()), hint


def test_a_spill_that_is_not_allowed_is_found():
    row = {"kernel": "attention dQ", "dtype": "bfloat16", "d_head": 128, "stack_bytes": 8, "shared_bytes": 0}
    row |= {"tensor_core": 1, "registers": 255}
    allowed = row | {"kernel": "attention dQ, and own dK, dV"}
    check([row | {"stack_bytes": 0}, allowed], "pinned")
    for wrong in (row, allowed | {"stack_bytes": 16}, row | {"stack_bytes": 0, "shared_bytes": SHARED_LIMIT + 1}):
        with pytest.raises(AssertionError):
            check([wrong], "pinned")
    with pytest.raises(AssertionError):
        check([row | {"stack_bytes": 0, "tensor_core": 0}], "pinned")


def test_what_ships_is_what_is_not_refused():
    from ratplus.kernels import aot

    assert {(str(dtype), d_head) for dtype, d_head in aot.shipped()} == {
        *((f"torch.{dtype}", d_head) for dtype in ("bfloat16", "float16") for d_head in (16, 32, 64, 128, 256)),
        *(("torch.float32", d_head) for d_head in (16, 32, 64, 128)),
    }


@pytest.mark.parametrize("version", ["pinned", pytest.param("oldest", marks=pytest.mark.slow)])
def test_keys_gradients_through_descriptors(version):
    """The largest tiles: what spills is outside the loops, which read by TMA and use wgmma."""
    code = (
        "from ratplus.kernels.attention import fused, fused_backward\n"
        "result = []\n"
        "for kernel, tiles, more in (\n"
        "    (fused_backward.dkv_band_kernel, fused.Tiles(64, 64, 4, 2), {}),\n"
        "    (fused_backward.dkv_far_kernel, fused.Tiles(64, 128, 8, 3), {'SPLIT': False}),\n"
        "):\n"
        "    code = aot.compiled(kernel, {'BOXES': True, **tiles.constants(128, 1), **more})\n"
        "    boxes = code.asm['ptx'].count('cp.async.bulk.tensor')\n"
        "    result.append(aot.measure(code) | {'boxes': boxes, 'local': code.asm['ptx'].count('cp.async.c')})"
    )
    for row in run(version, code):
        assert row["boxes"] >= 4  # q, d_out, lse, delta
        assert row["local"] == 0  # nothing goes to shared memory by way of a thread's addresses
        assert row["stack_bytes"] <= 48
        assert row["shared_bytes"] <= SHARED_LIMIT
        assert row["tensor_core"] == 24


@pytest.mark.slow
@pytest.mark.parametrize("version", ["pinned", "oldest"])
def test_documented_table(version):
    """bf16, heads of 64 and 128; and the kernels for sizes that Triton turns into constants, since they are 1."""
    from ratplus.kernels.aot import table

    found = run(version, "result = {'rows': aot.report(), 'of_one': aot.compile_for_sizes_of_one()}")
    check(found["rows"], version)
    assert found["of_one"] >= 20
    lines = table(found["rows"]).splitlines()
    if version == "pinned":
        assert lines == documented(), "put what `python -m ratplus.kernels.aot` prints in docs/kernels.md"
        assert f"Triton {PINNED}" in (ROOT / "docs" / "kernels.md").read_text()
    else:
        assert len(lines) == len(documented())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("version", ["pinned", "oldest"])
def test_everything_that_ships(version, dtype):
    """Every head size and every kernel, with query heads that share keys and without: minutes for each dtype."""
    code = (
        f"sizes = tuple(d for dtype, d in aot.shipped() if dtype == torch.{dtype})\n"
        f"result = aot.report(torch.{dtype}, sizes, every_group=True)"
    )
    rows = run(version, code)
    assert len(rows) == (4 * 58 if dtype == "float32" else 5 * 60) + 2
    check(rows, version)
