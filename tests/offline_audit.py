"""Holds the pins of constraints.txt against a folder of advisories: `make audit AUDIT_DB=FOLDER`, without a network.

The folder holds OSV's JSON files (https://ossf.github.io/osv-schema), one an advisory, at any depth, such as its export
of PyPI, unpacked. pip-audit reads none from a folder.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.version import InvalidVersion, Version

_PIN = re.compile(r"([\w.-]+)==([^\s;#]+)")


def plain_name(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, Version]:
    """Package -> version of the lines `name==version` of a constraints file."""
    return {plain_name(name): Version(version) for name, version in _PIN.findall(re.sub(r"(?m)#.*$", "", text))}


def is_affected(affected: dict, version: Version) -> bool:
    """Whether a version is listed, or lies in a range of versions (events in the order of versions)."""
    if any(_same(text, version) for text in affected.get("versions") or []):
        return True
    for span in affected.get("ranges") or []:
        if span.get("type") != "ECOSYSTEM":  # of commits
            continue
        inside = False
        try:
            events = sorted(span["events"], key=_place)
        except InvalidVersion:  # of before PEP 440; better one match too many than one missed
            return not affected.get("versions")
        for event in events:
            kind, text = next(iter(event.items()))
            if kind == "introduced" and _version(text) <= version:
                inside = True
            elif (kind == "fixed" and _version(text) <= version) or (
                kind == "last_affected" and _version(text) < version
            ):
                inside = False
        if inside:
            return True
    return False


def _place(event: dict) -> tuple:
    kind, text = next(iter(event.items()))
    return _version(text), kind != "introduced"


def _version(text: str) -> Version:
    return Version("0.dev0" if text == "0" else text)


def _same(text: str, version: Version) -> bool:
    try:
        return Version(text) == version
    except InvalidVersion:
        return False


def found(advisory: dict, pinned: dict[str, Version]) -> Iterator[str]:
    """A line for each pinned package that an advisory is about."""
    for affected in () if advisory.get("withdrawn") else advisory.get("affected") or []:
        package = affected.get("package") or {}
        name = plain_name(package.get("name", ""))
        if package.get("ecosystem") == "PyPI" and name in pinned and is_affected(affected, pinned[name]):
            names = ", ".join([advisory["id"], *(advisory.get("aliases") or [])])
            yield f"{name}=={pinned[name]}: {names}: {' '.join((advisory.get('summary') or '').split())[:200]}"


def main(folder: str, constraints: str = "constraints.txt") -> int:
    """0: none of the pins is known to be affected; 1: some are; 2: nothing to hold them against, or unreadable."""
    pinned, lines, count, newest = pins(Path(constraints).read_text()), set(), 0, ""
    for path in sorted(Path(folder).rglob("*.json")):
        try:
            advisory = json.loads(path.read_bytes())
            lines.update(found(advisory, pinned))
            newest = max(newest, advisory["modified"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"audit: error: {path}: no advisory in OSV's format ({error!r})", file=sys.stderr)
            return 2
        count += 1
    if not count:
        print(f"audit: error: AUDIT_DB={folder}: no .json file below it, so nothing was checked", file=sys.stderr)
        return 2
    print("\n".join([*sorted(lines), f"{len(pinned)} pins, {count} advisories up to {newest}: {len(lines)} matches"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
