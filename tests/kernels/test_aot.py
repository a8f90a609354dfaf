"""Every Triton kernel compiles for an H100, without spills, with tensor cores and within shared memory.

Under the installed Triton, which the constraints pin, and under Triton 3.6: the oldest that ratplus allows. `make test`
puts that one into a folder of its own beside the environment's packages.
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
# The time goes into compiling, so one process a version does all of it.
CODE = """
import json, triton
from ratplus.kernels import aot
print(json.dumps({"triton": triton.__version__, "rows": aot.report(), "of_one": aot.compile_for_sizes_of_one()}))
"""


@pytest.fixture(scope="module", params=["pinned", "oldest"])
def compiled(request):
    """{"triton": version, "rows": what was measured, "of_one": how many kernels compiled for sizes of one}."""
    # Without the interpreter, which is switched on when a kernel is decorated.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if request.param == "oldest":
        if not (OLDEST_HOME / "triton").is_dir():
            pytest.skip(
                f"Triton {OLDEST} isn't in {OLDEST_HOME.name}/ of this environment: `make test` installs it there; "
                f"or pip install --no-deps --target FOLDER triton=={OLDEST} and set RATPLUS_TRITON_36=FOLDER"
            )
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(OLDEST_HOME), environment.get("PYTHONPATH")]))
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    if request.param == "oldest":
        assert result["triton"] == OLDEST
    return result


def test_no_register_spills(compiled):
    assert len(compiled["rows"]) >= 40
    assert [row for row in compiled["rows"] if row["stack_bytes"]] == []


def test_shared_memory_fits(compiled):
    assert [row for row in compiled["rows"] if row["shared_bytes"] > SHARED_LIMIT] == []


def test_attention_uses_tensor_cores(compiled):
    rows = [row for row in compiled["rows"] if row["kernel"].startswith(("attention forward", "attention d"))]
    products = [row for row in rows if row["kernel"] not in ("attention delta", "attention dKV, combine")]
    # Decoding needs them only where several query heads meet the same keys.
    products += [row for row in compiled["rows"] if re.fullmatch("decode, split, .* heads a key", row["kernel"])]
    assert len(products) == 16
    assert [row for row in products if row["tensor_core"] == 0] == []


def test_decoding_leaves_registers_for_several_programs(compiled):
    """Two programs of four warps a multiprocessor hide the latency of memory: at most 168 registers a thread."""
    rows = [row for row in compiled["rows"] if row["kernel"].startswith("decode")]
    assert [row for row in rows if row["registers"] > 168] == []


def test_sizes_of_one_compile(compiled):
    """Triton turns an argument that is 1 into a constant; the kernels must not rely on its type."""
    assert compiled["of_one"] >= 20


def test_the_documented_table_is_what_compiles(compiled):
    from ratplus.kernels.aot import table

    docs = (ROOT / "docs" / "kernels.md").read_text()
    documented = docs[docs.index("| kernel | d_head | registers |") :].split("\n\n")[0].splitlines()
    if compiled["triton"] == OLDEST:  # of which the page says only that nothing spills
        assert f"Triton {OLDEST} gives 0 stack bytes" in docs
        assert len(documented) == len(compiled["rows"]) + 2
    elif compiled["triton"] == PINNED:
        assert f"Triton {PINNED}" in docs
        hint = (
            "if the machine code is meant to change, put what `python -m ratplus.kernels.aot` prints in docs/kernels.md"
        )
        assert documented == table(compiled["rows"]).splitlines(), hint
    else:
        pytest.skip(f"the table is of Triton {PINNED}, which the constraints pin; this is {compiled['triton']}")
