"""Who may import whom, and that the light parts stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "ratplus", "sweeps", "analysis")
# Folder -> what it must never import, at any level of a file.
FORBIDDEN = {
    "kernels": ("ratplus.model", "ratplus.pattern", "ratplus.sweeps", "ratplus.analysis", "hydra", "omegaconf", "wandb",
                "lightning", "pandas", "matplotlib", "rich"),
    "ratplus": ("ratplus.sweeps", "ratplus.analysis", "hydra", "omegaconf", "wandb", "pandas", "matplotlib", "rich"),
    "sweeps": ("matplotlib", "pandas"),
    "analysis": ("torch", "triton", "lightning", "hydra", "omegaconf", "wandb", "ratplus.model", "ratplus.kernels",
                 "ratplus.training", "ratplus.stages", "ratplus.sweeps"),
}  # fmt: skip


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def is_or_below(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_respect_the_borders(folder):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            for banned in FORBIDDEN[folder]:
                assert not is_or_below(name, banned), f"{path.relative_to(ROOT)} imports {name}"


def test_kernels_stand_on_torch_and_triton_alone():
    """So that an operator can be read, copied and timed without the rest of the house."""
    for path in (ROOT / "kernels").rglob("*.py"):
        for name in imports(path):
            top = name.partition(".")[0]
            allowed = top in ("torch", "triton", *sys.stdlib_module_names) or is_or_below(name, "ratplus.kernels")
            assert allowed or path.parent.name == "bench", f"{path.relative_to(ROOT)} imports {name}"


def test_lm_eval_is_imported_in_one_file_and_only_when_a_task_needs_it():
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            if any(is_or_below(name, "lm_eval") for name in imports(path)):
                assert path.relative_to(ROOT) == Path("ratplus/evaluation/harness.py")
                whole = ast.parse(path.read_text()).body
                top = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name
                       for n in whole if isinstance(n, (ast.Import, ast.ImportFrom))}  # fmt: skip
                assert not any(is_or_below(name or "", "lm_eval") for name in top)


def test_folders_are_only_imported_as_ratplus():
    """`kernels` and `sweeps` are other people's packages on PyPI."""
    for path in ROOT.rglob("*.py"):
        if ".venv" in path.parts:
            continue
        for name in imports(path):
            assert name.partition(".")[0] not in ("kernels", "sweeps", "analysis", "conf"), f"{path} imports {name}"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import ratplus; ratplus.Pattern(16)", ("torch", "triton", "pandas", "hydra", "lightning")),
        ("import ratplus.kernels", ("torch", "triton")),
        ("import ratplus.evaluation.harness, ratplus.data.needles, ratplus.records.samples",
         ("torch", "lm_eval", "datasets")),
        ("import ratplus.analysis.report", ("torch", "triton", "hydra")),
        ("import ratplus.sweeps.define.compose, ratplus.sweeps.verbs.status, ratplus.sweeps.define.manifest",
         ("torch", "triton", "pandas")),
        ("import ratplus.sweeps.cli", ("torch", "hydra", "numpy")),
        ("from ratplus.kernels import gated_scan; import torch; x = torch.randn(1, 1, 2, 4); gated_scan(x, x, x)",
         ("ratplus.kernels.scan.fused",)),
    ],
)  # fmt: skip
def test_light_imports(code, heavy):
    check = f"{code}\nimport sys\nloaded = [m for m in {heavy!r} if m in sys.modules]\nassert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
