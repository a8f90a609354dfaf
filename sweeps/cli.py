"""The command line: `ratplus <verb> [overrides]`. Each verb is a file of `sweeps/verbs`; their table stands here."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from contextlib import nullcontext
from importlib import import_module
from typing import NoReturn, cast

from ratplus.sweeps.define.collector import seldom_collected
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.exits import EXIT_MISTAKE, leave
from ratplus.sweeps.verbs import Verb
from ratplus.training.foreign_settings import shut_out

# Verb -> its module in ratplus.sweeps.verbs, in the order of `ratplus --help`.
VERBS = {
    "sweep": "sweep",
    "pretrain": "pretrain",
    "adapt": "adapt",
    "sft": "sft",
    "evaluate": "evaluate",
    "plan": "plan",
    "generate": "generate",
    "status": "status",
    "show": "show",
    "ls": "ls",
    "note": "note",
    "pack": "pack",
    "gc": "gc",
    "report": "report",
    "best": "best",
    "compare": "compare",
    "sync": "sync",
    "search": "search",
    "bench": "bench",
    "prepare": "prepare",
    "import": "import_model",
    "export": "export_model",
}
# They read the records of sweeps, of thousands of cells where these are large, and run no model.
READERS = {"status", "show", "ls", "note", "pack", "gc", "report", "best", "compare", "sync"}


def main(argv: list[str] | None = None) -> NoReturn:
    """Entry point of the console script; ends the process with one of the exit codes of `ratplus.sweeps.exits`."""
    # The console script imports nothing from the working folder. Neither may what it starts (workers, ranks, tokenizing
    # processes, jobs): a script of the user's there may be called queue.py.
    os.environ["PYTHONSAFEPATH"] = "1"
    leave(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(words: list[str]) -> int:
    shut_out()
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else EXIT_MISTAKE
    if words[0] == "--version":
        from ratplus import __version__

        print(f"ratplus {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(VERBS)}"
        raise UsageError(f"{name}: no such command; {hint}")
    arguments = parser_of(name).parse_intermixed_args([_expand_home(word) for word in rest])
    with seldom_collected() if name in READERS else nullcontext():
        return verb_module(name).run(arguments)


def _expand_home(word: str) -> str:
    """An option such as `--config-dir=~/my`, whose ~ a shell leaves alone, with the home folder in it."""
    option, sign, value = word.partition("=")
    if not (option.startswith("--") and sign and value.startswith("~")):
        return word
    expanded = os.path.expanduser(value)
    if expanded == value:
        raise UsageError(f"{option}: got {value!r}; there is no home folder of that name; write the path in full")
    return f"{option}={expanded}"


def verb_module(name: str) -> Verb:
    """The module of a verb; importing it is light."""
    return cast(Verb, import_module(f"ratplus.sweeps.verbs.{VERBS[name]}"))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(" ".join(message.split()))  # it quotes words of the user's, which may hold line breaks


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a verb's options, with its help line and examples."""
    verb = verb_module(name)
    parser = _Parser(
        prog=f"ratplus {name}",
        description=verb.HELP,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in verb.EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_arguments(parser)
    return parser


def _usage() -> str:
    lines = ["usage: ratplus <command> [overrides]", ""]
    lines += [f"  {name:<9} {verb_module(name).HELP}" for name in VERBS]
    return "\n".join([*lines, "", "ratplus <command> --help shows an example of each."])
