"""What callers rely on without saying it: defaults of public functions and dataclasses, and public constants.

`python tests/defaults.py` writes them to tests/data/defaults.txt, one line each, and tests/test_defaults.py compares. A
default decides the results of everybody who leaves the argument out, and a changed one breaks no call: so a change must
be seen where a commit is read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "tests/data/defaults.txt"
# Sizes of tiles and looks of figures are tuned and decide no result.
LEFT_OUT = ("ratplus/bench/", "ratplus/hf/", "kernels/bench/", "kernels/aot.py", "sweeps/bench/",
            "sweeps/verbs/", "analysis/draw/")  # fmt: skip
LONGEST = 200  # characters of a value: what is longer is text or a table that has tests of its own


def sources() -> Iterator[Path]:
    for folder in ("kernels", "ratplus", "sweeps", "analysis"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            tuned = path.name.startswith("fused") or name == "kernels/blocks/tiles.py"
            if not tuned and not name.startswith(LEFT_OUT):
                yield path


def lines(path: Path) -> Iterator[str]:
    """`kernels/scan/eager.py CHUNK = 64`, `ratplus/costs/cost.py cost(recurrence=False)`, of one file."""
    name = path.relative_to(ROOT).as_posix()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and _is_constant(node):
            yield f"{name} {ast.unparse(node)}"
        if isinstance(node, ast.FunctionDef):
            yield from (f"{name} {line}" for line in _function(node, ""))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not _is_on_page(name, node.name):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    yield from (f"{name} {line}" for line in _function(part, f"{node.name}."))
                elif isinstance(part, ast.AnnAssign) and _is_default(part):
                    yield f"{name} {node.name}: {ast.unparse(part.target)}={ast.unparse(part.value)}"


def _is_on_page(file: str, name: str) -> bool:
    """Whether a dataclass's defaults stand in docs/reference/keys.md, where all keys of a cell do."""
    section = name.endswith("Section") or name in ("NeedleSplit", "Config")
    return file.startswith("ratplus/config/") and section and name != "SearchSection"


def _function(node: ast.FunctionDef, prefix: str) -> Iterator[str]:
    given = node.args
    named = [*given.posonlyargs, *given.args]
    pairs = [*zip(named[len(named) - len(given.defaults) :], given.defaults), *zip(given.kwonlyargs, given.kw_defaults)]
    told = [f"{name.arg}={ast.unparse(value)}" for name, value in pairs if value is not None and not _is_none(value)]
    if told and (not node.name.startswith("_") or node.name == "__init__"):
        yield f"{prefix}{node.name}({', '.join(told)})"


def _is_constant(node: ast.Assign) -> bool:
    (target, *more) = node.targets
    names = target.elts if isinstance(target, ast.Tuple) else [target]
    public = all(isinstance(name, ast.Name) and name.id.isupper() and name.id[0] != "_" for name in names)
    return public and not more and _is_plain(node.value) and len(ast.unparse(node.value)) <= LONGEST


def _is_plain(value: ast.expr) -> bool:
    """Numbers, truth values, short texts, and what is made of these; no text alone, of which messages are made."""
    kinds = (ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop,
             ast.expr_context, ast.Name)  # fmt: skip
    alone = isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, str))
    return not alone and all(isinstance(part, kinds) for part in ast.walk(value))


def _is_default(field: ast.AnnAssign) -> bool:
    hidden = ast.unparse(field.target).startswith("_")
    return not hidden and field.value is not None and not _is_none(field.value)


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def page() -> str:
    return "".join(f"{line}\n" for path in sources() for line in lines(path))


if __name__ == "__main__":
    PAGE.write_text(page())
