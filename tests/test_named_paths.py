"""What the docs name is there: links, files, folders and modules, in this checkout."""

import re
import tomllib
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md")])
# Folders of the repository; other paths in the docs are those of a sweep, or the reader's own.
TOP = ("ratplus", "kernels", "sweeps", "analysis", "conf", "tests", "docs")


def names(page: Path) -> list[str]:
    """Words in backticks, and those of code blocks."""
    text = page.read_text()
    blocks = re.findall(r"^```.*?^```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [word for part in inline + blocks for word in part.split()]


def paths_named(page: Path) -> set[str]:
    words = (word.strip(",.;:()'\"").partition("::")[0] for word in names(page))
    return {w for w in words if re.fullmatch(rf"({'|'.join(TOP)})/[\w./*-]*", w)}


def modules_named(page: Path) -> set[str]:
    return {m for word in names(page) for m in re.findall(r"\bratplus(?:\.\w+)+", word)}


@cache
def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), target
        if anchor:
            assert anchor in headings(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page):
    for path in paths_named(page):
        # A page of docs/ may name its neighbours from the root, as all pages do.
        assert list(ROOT.glob(path.rstrip("/"))), path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_modules_that_are_named_exist(page):
    for name in modules_named(page):
        parts, thing = name.split("."), None
        for length in range(len(parts), 0, -1):
            try:
                found = find_spec(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            if found is not None:
                thing = import_module(".".join(parts[:length]))
                break
        for attribute in parts[length:]:
            assert hasattr(thing, attribute), name
            thing = getattr(thing, attribute)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_make_targets_that_are_named_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    blocks = "\n".join(re.findall(r"^```.*?^```", text, re.DOTALL | re.MULTILINE))
    commands = re.findall(r"`make ([^`\n]+)`", text) + re.findall(r"^make (.+)", blocks, re.MULTILINE)
    for command in commands:
        words = command.partition("#")[0].split()
        assert {w for w in words if "=" not in w} <= targets, f"make {command}"


def test_the_citation_is_of_this_version():
    version = re.search(r"^version: (.*)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
