"""Every option of every verb as it is declared, a line each: what `--help` says, and what words it takes.

`python -P tests/options.py` writes them to tests/data/options.txt, and tests/sweeps/verbs/test_table_of_verbs.py
compares. Scripts rely on them, and a default or a choice that changed breaks none of their calls: so it must be seen
where a commit is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parents[1] / "tests/data/options.txt"
# Of an option as argparse keeps it; what is not set is left out.
_SHOWN = ("dest", "nargs", "const", "default", "type", "choices", "metavar", "help")


def lines(name: str) -> Iterator[str]:
    """`sync --dry-run _StoreTrueAction dest='dry_run' ...`, of one verb."""
    from ratplus.sweeps import cli

    for action in cli.parser_of(name)._actions:
        words = [f"{key}={_value(getattr(action, key))}" for key in _SHOWN if getattr(action, key) not in (None, False)]
        if not isinstance(action, argparse._HelpAction):
            words += ["required"] if action.required and action.option_strings else []
            kind = type(action).__name__.strip("_").removesuffix("Action")
            yield " ".join([name, *action.option_strings, kind, *words])


def _value(value) -> str:
    """A value in one line; of a function its name, since its address is another each time."""
    return getattr(value, "__name__", None) or repr(value)


def page() -> str:
    from ratplus.sweeps import cli

    return "".join(f"{line}\n" for name in cli.VERBS for line in lines(name))


if __name__ == "__main__":
    PAGE.write_text(page())
