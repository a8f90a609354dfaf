"""The command line: `ratplus <verb> [overrides]`. Verbs import what they need when they run, so --help stays light."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

VERBS = {
    "sweep": "run a grid of cells: pretrain once a model, adapt and evaluate every pattern, write the report",
    "pretrain": "make sure of the pretraining of a cell",
    "adapt": "... and of its adaptation to a pattern",
    "evaluate": "... and of its evaluation: all three stages of one cell",
    "status": "show which cells of a sweep folder are done, running, failed or missing",
    "report": "write the tables and figures of a sweep folder",
    "bench": "time the operators beside dense attention and a plain copy",
    "prepare": "tokenize a corpus and check it",
    "import": "convert a checkpoint of the reference implementation into a model folder",
}

_OVERRIDES = "Hydra overrides: group=choice, key=value; with -m also a,b,c, range(), glob(*)"
_RUN_EXAMPLES = {
    "sweep": [
        "ratplus sweep experiment=smoke",
        "ratplus sweep -m experiment=demo 'pattern=glob(*)' model=attention_tiny,ratplus_tiny",
        "ratplus sweep -m pattern.dilation=1,2,4,8,16,32,64 pattern.window=0,64",
    ],
    "pretrain": ["ratplus pretrain model=ratplus_tiny train.pretrain.steps=200"],
    "adapt": ["ratplus adapt model=ratplus_tiny pattern=dilated pattern.dilation=32"],
    "evaluate": ["ratplus evaluate model=ratplus_tiny pattern=streaming", "ratplus evaluate -m 'pattern=glob(*)'"],
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script; exits with 0, 1 (a cell failed), 2 (a mistake) or 128 + signal."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        from ratplus import __version__

        print(f"ratplus {__version__}")
        sys.exit(0)
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        import difflib

        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(VERBS)}"
        _fail(f"{verb}: no such command; {hint}")
    arguments = _parser(verb).parse_intermixed_args(rest)
    try:
        code = import_module("ratplus.sweeps.commands").run(verb, arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except ValueError as error:
        # What users can mend is a ValueError of one line, by the house's rule.
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    sys.exit(code)


def _usage() -> str:
    lines = ["usage: ratplus <command> [overrides]", ""]
    lines += [f"  {verb:<9} {text}" for verb, text in VERBS.items()]
    return "\n".join([*lines, "", "ratplus <command> --help shows an example of each."])


def _parser(verb: str) -> argparse.ArgumentParser:
    examples = (
        _RUN_EXAMPLES.get(verb)
        or {
            "status": ["ratplus status outputs/demo"],
            "report": ["ratplus report outputs/demo"],
            "bench": ["ratplus bench", "ratplus bench --threads 1 --json bench.json"],
            "prepare": ["ratplus prepare data=pydocs", "ratplus prepare data=text data.path=books/"],
            "import": ["ratplus import checkpoint.pt models/ratplus_1b --d-head 128"],
        }[verb]
    )
    parser = argparse.ArgumentParser(
        prog=f"ratplus {verb}",
        description=VERBS[verb],
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if verb in _RUN_EXAMPLES or verb == "prepare":
        parser.add_argument("overrides", nargs="*", help=_OVERRIDES)
        parser.add_argument("--config-dir", metavar="DIR", help="folder with your own conf/ groups, searched as well")
    if verb in _RUN_EXAMPLES:
        parser.add_argument("-m", "--multirun", action="store_true", help="several values make several cells")
    if verb in ("status", "report"):
        parser.add_argument("folder", help="sweep folder, such as outputs/demo")
    if verb == "bench":
        parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
        parser.add_argument("--repeats", type=int, default=7, help="timed repetitions of each operator (default: 7)")
        parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    if verb == "import":
        parser.add_argument("checkpoint", help="state_dict file of the reference implementation")
        parser.add_argument("folder", help="model folder to write")
        parser.add_argument("--d-head", type=int, default=128, help="channels per head (default: 128)")
        parser.add_argument("--max-len", type=int, default=4096, help="longest sequence (default: 4096)")
    return parser


def _fail(line: str) -> None:
    print(f"ratplus: error: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)
