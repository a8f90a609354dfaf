"""Every Triton kernel compiles for an H100, without spills, with tensor cores and within shared memory."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SHARED_LIMIT = 227 * 1024


def _report(arguments: str) -> list[dict]:
    """Compiled in a process without the interpreter: it is switched on when a kernel is decorated."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = f"import json; from ratplus.kernels.aot import report; print(json.dumps(report({arguments})))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report():
    return _report("")


def test_no_register_spills(report):
    assert len(report) >= 34
    assert [row for row in report if row["stack_bytes"]] == []


def test_shared_memory_fits(report):
    assert [row for row in report if row["shared_bytes"] > SHARED_LIMIT] == []


def test_attention_uses_tensor_cores(report):
    products = [row for row in report if row["kernel"].startswith(("attention forward", "attention d"))]
    products = [row for row in products if row["kernel"] != "attention delta"]
    assert len(products) == 8
    assert [row for row in products if row["tensor_core"] == 0] == []


def test_decoding_leaves_registers_for_several_programs(report):
    """Two programs of four warps a multiprocessor hide the latency of memory: at most 168 registers a thread."""
    assert [row for row in report if row["kernel"].startswith("decode") and row["registers"] > 168] == []


def test_sizes_of_one_compile(report):
    """Triton turns an argument that is 1 into a constant; the kernels must not rely on its type."""
    assert len(_report("sizes_are_one=True")) == len(report)
