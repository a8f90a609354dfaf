"""Every package that our code imports is named in pyproject.toml, as a dependency or in an extra."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Figures are shown in a notebook only where IPython runs the code, so it is there already.
HOST = "IPython"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}


def imported(folder: str) -> dict[str, Path]:
    """{top-level name of another package: a file that imports it}."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0]: path.relative_to(ROOT) for name in names}
    return {name: path for name, path in found.items() if name not in (*sys.stdlib_module_names, "ratplus", HOST)}


@pytest.mark.parametrize("folder", ["kernels", "ratplus", "sweeps", "analysis"])
def test_every_import_is_declared(folder):
    found = imported(folder)
    assert found
    distributions, names = packages_distributions(), declared()
    for name, path in found.items():
        # Extras that are not installed here, such as ray, have the name that they are imported by.
        candidates = {normal(distribution) for distribution in distributions.get(name, [name])}
        assert candidates & names, f"{path} imports {name}: declare {' or '.join(sorted(candidates))} in pyproject.toml"
