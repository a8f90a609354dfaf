"""Who may import whom, read from the import statements of every file; and that the light parts stay light.

A *room* is a folder of `ratplus/`, `kernels/`, `sweeps/` or `analysis/`, or the files that stand beside such folders.
Imports count at any level of a file, also inside functions and for type checkers.
"""

import ast
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = {
    "kernels": "ratplus.kernels", "ratplus": "ratplus", "sweeps": "ratplus.sweeps", "analysis": "ratplus.analysis",
}  # fmt: skip
# From the bottom to the top: a room imports rooms before it, and never one after it.
ORDER = (
    "ratplus.hf",
    "ratplus.pattern", "ratplus.kernels", "ratplus.records", "ratplus.kernels.bench", "ratplus.config", "ratplus.data",
    "ratplus.costs", "ratplus.model", "ratplus.checkpoint", "ratplus.training", "ratplus.bench", "ratplus.evaluation",
    "ratplus.stages", "ratplus.search", "ratplus",
    "ratplus.analysis.draw", "ratplus.analysis.frame", "ratplus.analysis.paired", "ratplus.analysis.page",
    "ratplus.analysis.selection", "ratplus.analysis.search",
    "ratplus.analysis",
    "ratplus.sweeps.define", "ratplus.sweeps.mirror", "ratplus.sweeps.batch", "ratplus.sweeps.launch",
    "ratplus.sweeps.views", "ratplus.sweeps.share",
    "ratplus.sweeps.bench", "ratplus.sweeps.runner", "ratplus.sweeps.verbs", "ratplus.sweeps",
)  # fmt: skip
# One room with the files beside them, which choose among them and serve them.
OPERATORS = (
    "ratplus.kernels.scan", "ratplus.kernels.attention", "ratplus.kernels.decode", "ratplus.kernels.blocks",
    "ratplus.kernels.block_decode", "ratplus.kernels.linear_attention",
)  # fmt: skip
MOST_FILES = 15
# Each verb of the command line is one file there, whatever their number.
ONE_FILE_EACH = ("sweeps/verbs",)
# Folder -> other people's packages that it must never import.
FORBIDDEN = {
    "kernels": ("hydra", "omegaconf", "wandb", "lightning", "pandas", "matplotlib", "rich"),
    "ratplus": ("hydra", "omegaconf", "wandb", "pandas", "matplotlib", "rich"),
    "sweeps": ("matplotlib", "pandas"),
    "analysis": ("torch", "triton", "lightning", "hydra", "omegaconf", "wandb"),
}
# What analysis may import of ratplus beside itself: all of it torch-free. `ratplus` itself is the version.
ANALYSIS_MAY = ("ratplus.pattern", "ratplus.costs", "ratplus.records")


@cache
def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name; a package is its `__init__.py`."""
    found = {}
    for folder, name in NAMES.items():
        paths = sorted((ROOT / folder).rglob("*.py"))
        assert paths, f"{folder}/ holds no Python file: has it moved?"
        for path in paths:
            parts = [name, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: Path) -> set[str]:
    """Dotted names that a file imports: modules, and `module.name` of every `from module import name`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}: a relative import; write the whole name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports."""
    edges = {}
    for name, path in modules().items():
        edges[name] = set()
        for imported in imports(path):
            while imported and imported not in modules():
                imported = imported.rpartition(".")[0]
            if imported and imported != name:
                edges[name].add(imported)
    return edges


def room(module: str) -> str:
    """`ratplus.data.prepare.shards` -> `ratplus.data`; `ratplus.sweeps.cli` -> `ratplus.sweeps`."""
    parts = module.split(".")
    inside = 2 if ".".join(parts[:2]) in NAMES.values() else 1
    candidate = ".".join(parts[: inside + 1])
    if candidate in OPERATORS:
        return "ratplus.kernels"
    is_folder = candidate in modules() and modules()[candidate].name == "__init__.py"
    return candidate if is_folder else ".".join(parts[:inside])


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that can all reach each other (Tarjan's strongly connected components), but single nodes."""
    number, low, stack, found = {}, {}, [], []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in edges[node]:
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in edges:
        if node not in number:
            visit(node)
    return found


def is_or_below(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


def test_the_circle_finder_finds_circles():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a", "f"}, "f": {"e"}}
    assert sorted(circles(edges)) == [["b", "c"], ["e", "f"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_files_import_each_other_in_a_circle():
    assert len(graph()) > 150
    assert sum(map(len, graph().values())) > 500
    assert circles(graph()) == []


def test_rooms_import_downwards_only():
    """Every arrow of the import graph, between the rooms of ORDER; so there is no circle of rooms either."""
    rooms = {room(name) for name in modules()}
    assert rooms == set(ORDER), "ORDER names each room once: a new folder gets its place there, a removed one leaves it"
    assert len(ORDER) == len(set(ORDER))
    assert set(OPERATORS) <= modules().keys()
    for name, others in graph().items():
        for other in others:
            upper, lower = room(name), room(other)
            if other == "ratplus" or upper == lower:  # the package itself: its version
                continue
            assert ORDER.index(upper) > ORDER.index(lower), f"{name} imports {other}: {upper} stands below {lower}"


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("ratplus.kernels", "ratplus.costs"), ("ratplus.kernels", "ratplus.model"),
        ("ratplus.costs", "ratplus.training"), ("ratplus.model", "ratplus.training"),
        ("ratplus.model", "ratplus.evaluation"), ("ratplus.training", "ratplus.stages"),
        ("ratplus.evaluation", "ratplus.stages"), ("ratplus.stages", "ratplus.sweeps"),
    ],
)  # fmt: skip
def test_the_order_of_the_design(lower, upper):
    """ORDER may be arranged anew, but not against the design."""
    assert ORDER.index(lower) < ORDER.index(upper)


def test_the_root_of_ratplus_holds_folders_alone():
    assert {path.name for path in (ROOT / "ratplus").glob("*.py")} == {"__init__.py"}


def test_every_folder_is_in_the_package():
    """What pyproject.toml does not name is not in a wheel, though it is there where the project is installed from."""
    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert packages - {"ratplus.conf"} == {name for name, path in modules().items() if path.name == "__init__.py"}


def test_no_folder_is_crowded():
    counts = {}
    for path in modules().values():
        if path.name != "__init__.py":
            counts[path.parent] = counts.get(path.parent, 0) + 1
    assert len(counts) > 20
    crowded = {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > MOST_FILES}
    assert crowded.keys() <= set(ONE_FILE_EACH)


@pytest.mark.parametrize("folder", NAMES)
def test_packages_that_a_folder_does_without(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            for banned in FORBIDDEN[folder]:
                assert not is_or_below(name, banned), f"{path.relative_to(ROOT)} imports {name}"


def test_analysis_imports_the_torch_free_parts_alone():
    for allowed in ANALYSIS_MAY:
        assert allowed in modules()
    seen = set()
    for name, others in graph().items():
        if is_or_below(name, "ratplus.analysis"):
            for other in others:
                fine = any(is_or_below(other, allowed) for allowed in (*ANALYSIS_MAY, "ratplus.analysis"))
                assert fine or other == "ratplus", f"{name} imports {other}"
                seen.add(other)
    assert {"ratplus.pattern", "ratplus.records.record"} <= seen


def test_kernels_stand_on_torch_and_triton_alone():
    """So that an operator can be read, copied and timed without the rest of the house; their benchmark is exempt.

    So is the one file that runs the Triton kernels of fla-core, where that is installed.
    """
    peers = ROOT / "kernels" / "linear_attention" / "fused.py"
    files = [path for path in (ROOT / "kernels").rglob("*.py") if path.parent != ROOT / "kernels" / "bench"]
    assert len(files) > 15
    for path in files:
        for name in imports(path):
            top = name.partition(".")[0]
            allowed = top in ("torch", "triton", *sys.stdlib_module_names) or is_or_below(name, "ratplus.kernels")
            allowed = allowed or (top == "fla" and path == peers)
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_lm_eval_is_imported_in_one_file_and_only_when_a_task_needs_it():
    importers = {
        name for name, path in modules().items() if any(is_or_below(found, "lm_eval") for found in imports(path))
    }
    assert importers == {"ratplus.evaluation.harness"}
    whole = ast.parse(modules()["ratplus.evaluation.harness"].read_text()).body
    top = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name
           for n in whole if isinstance(n, (ast.Import, ast.ImportFrom))}  # fmt: skip
    assert top
    assert not any(is_or_below(name or "", "lm_eval") for name in top)


def test_folders_are_only_imported_as_ratplus():
    """`kernels` and `sweeps` are other people's packages on PyPI."""
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert len(tests) > 50
    for path in (*modules().values(), *tests):
        for name in imports(path):
            assert name.partition(".")[0] not in ("kernels", "sweeps", "analysis", "conf"), f"{path} imports {name}"


LIGHT = [name for name in modules() if room(name) in ("ratplus.config", "ratplus.records", "ratplus.costs")]
assert len(LIGHT) > 15


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import ratplus; ratplus.Pattern(16)", ("torch", "triton", "pandas", "hydra", "lightning")),
        ("import ratplus.kernels", ("torch", "triton")),
        ("import " + ", ".join(LIGHT), ("torch",)),
        ("import ratplus.stages.stage_ids, ratplus.stages.failures, ratplus.checkpoint.facts, ratplus.training.errors",
         ("torch",)),
        ("import ratplus.evaluation.harness, ratplus.data.needles, ratplus.records.samples",
         ("torch", "lm_eval", "datasets")),
        ("import ratplus.analysis.report", ("torch", "triton", "hydra")),
        ("import ratplus.sweeps.define.compose, ratplus.sweeps.views.sweep_view, ratplus.sweeps.define.manifest",
         ("torch", "triton", "pandas")),
        ("from ratplus.sweeps import cli; [cli.parser_of(name) for name in cli.VERBS]",
         ("torch", "triton", "hydra", "omegaconf", "numpy", "pandas", "rich", "wandb")),
        ("from ratplus.kernels import gated_scan; import torch; x = torch.randn(1, 1, 2, 4); gated_scan(x, x, x)",
         ("ratplus.kernels.scan.fused",)),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_light_imports(code, heavy):
    check = f"{code}\nimport sys\nloaded = [m for m in {heavy!r} if m in sys.modules]\nassert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
