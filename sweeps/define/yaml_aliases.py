"""YAML files whose aliases multiply: ten lines can stand for a billion values, and Hydra copies every one of them.

The files of a config folder are the user's, or of somebody whom the user trusts; but a slip of a loop that writes them
should end in a line as well, not in a machine without memory.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from ratplus.sweeps.define.mistakes import UsageError

# Values that aliases may add to a file. Copying so many takes Hydra some seconds and some hundred megabytes.
MOST_COPIES = 100_000
_ENDLESS = 10**15


def refuse_many_aliases(config_dir: str | Path) -> None:
    """Refuse a config folder with a file in which aliases stand for more than MOST_COPIES values.

    Files that are no YAML, or no text, pass: whoever reads them says what is wrong.

    A pipe is refused too, which would hold the reader up for ever.

    Raises:
        UsageError: one line that names the file.
    """
    for path in sorted(Path(config_dir).rglob("*.yaml")):
        if path.is_fifo():
            raise UsageError(f"{path}: is a pipe; a config file is a plain file")
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            # Without both signs there is no alias, and most files have none.
            copies = _copies(text) if "&" in text and "*" in text else 0
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
            continue
        if copies > MOST_COPIES:
            raise UsageError(
                f"{path}: its YAML aliases (*name) stand for more than {MOST_COPIES:,} values; write out what is meant"
            )


def _copies(text: str) -> int:
    """How many values aliases add to those that are written out; _ENDLESS is the most, and an alias within itself."""
    sizes: dict[int, int] = {}  # of each node, with all that its aliases stand for
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            return _ENDLESS
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = min(1 + sum(size(child) for child in _children(node)), _ENDLESS)
            open_nodes.discard(id(node))
        return sizes[id(node)]

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return 0 if root is None else size(root) - len(sizes)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
