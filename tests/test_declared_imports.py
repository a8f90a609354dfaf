"""Every package that our code imports is declared in pyproject.toml, and none is declared that nothing needs."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("ratplus", "kernels", "sweeps", "analysis")
# Import name -> package, where they differ.
PACKAGES = {
    "hydra": "hydra-core", "wandb_graphql": "wandb", "mpl_toolkits": "matplotlib", "google": "protobuf",
    "xdist": "pytest-xdist", "yaml": "pyyaml", "fla": "fla-core",
}  # fmt: skip
# What stands beside exported weights and is loaded by transformers.
OF_TRANSFORMERS = ROOT / "ratplus" / "hf"
# Declared for a reason that no import shows.
UNSEEN = {
    "ipython",  # taken from the running notebook, which brings it
    "triton",  # imported by name where it is asked for, and by torch
    "pyarrow", "zstandard", "tokenizers", "sentencepiece",  # imported by a name that stands in a table
    "hydra-optuna-sweeper",  # a plugin that Hydra finds by itself
    "jieba", "fuzzywuzzy", "rouge", "nltk", "wonderwords",  # imported by lm-eval's tasks
    "accelerate",  # imported by lm-eval for its `--model hf`
    "pytest", "pytest-mpl", "pytest-xdist", "jupytext", "ruff", "ty",  # tools
    "playwright", "axe-playwright-python", "hypothesis", "protobuf", "packaging",  # imported by tests alone
}  # fmt: skip


def name_of(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-")


def declared(requirements: list[str]) -> set[str]:
    return {name_of(r) for r in requirements if not r.startswith("ratplus[")}


BASE = declared(PROJECT["dependencies"])
EXTRAS = {name: declared(wanted) for name, wanted in PROJECT["optional-dependencies"].items()}
ANYWHERE = BASE.union(*EXTRAS.values())


@cache
def imported(path: Path) -> list[tuple[str, bool]]:
    """(package, whether importing the file imports it) of every foreign import of a file."""
    tree = ast.parse(path.read_text())
    later = {
        id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)
    }
    later |= {
        id(n) for test in ast.walk(tree) if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
        for n in ast.walk(test)
    }  # fmt: skip
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            tops = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            tops = {(node.module or "").partition(".")[0]}
        else:
            continue
        foreign = tops - set(sys.stdlib_module_names) - {"ratplus"}
        found += [(PACKAGES.get(top, top).lower().replace("_", "-"), id(node) not in later) for top in foreign]
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_the_code_imports_is_declared(folder):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for package, at_once in imported(path):
            assert package in ANYWHERE, (
                f"{path.relative_to(ROOT)} imports {package}, which pyproject.toml does not name"
            )
            if at_once and not (path.is_relative_to(OF_TRANSFORMERS) and package == "transformers"):
                assert package in BASE, (
                    f"{path.relative_to(ROOT)} imports {package} as soon as it is imported itself, but only an extra "
                    "brings it: import it in the function that needs it"
                )


def test_what_the_tests_import_is_declared():
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    for path in (ROOT / "tests").rglob("*.py"):
        for package, _ in imported(path):
            assert package in ANYWHERE or package.replace("-", "_") in own, (
                f"{path.relative_to(ROOT)} imports {package}"
            )


def test_what_is_declared_is_imported():
    used = {package for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") for package, _ in imported(path)}
    assert not ANYWHERE - used - UNSEEN
    assert UNSEEN <= ANYWHERE, "what is no longer declared needs no excuse"


def test_constraints_pin_what_make_setup_installs():
    pinned = {name_of(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    dev = EXTRAS["dev"].union(*(EXTRAS[e] for e in ("tokenizers", "hub", "slurm", "dashboards")))
    assert BASE | dev <= pinned


def test_sizes_of_what_is_written_by_hand():
    rows = re.findall(r"\| `([\w/]+\.py)` \| (\d+) \|", (ROOT / "docs/internals/by_hand.md").read_text())
    assert len(rows) >= 10
    for path, said in rows:
        lines = len((ROOT / path).read_text().splitlines())
        assert abs(lines - int(said)) <= 0.25 * lines, (
            f"{path} has {lines} lines, docs/internals/by_hand.md says {said}"
        )
