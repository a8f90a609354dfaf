"""`ratplus search model=... budget=kv:0.125 candidates=... over=layers`: a pattern for each layer or head."""

from __future__ import annotations

import argparse

HELP = "search one pattern for each layer or head of a trained model, under a budget"
EXAMPLES = [
    "ratplus search model=a12949d9c432 budget=kv:0.25,kv:0.125 candidates=D1,D4,D16,D64 over=layers,heads",
    "ratplus search model=models/smollm2 data.tokenizer=models/smollm2 data.recall.fraction=0 length=1024 dry_run=true",
    "ratplus search model=ID budget=latency:0.5 candidates=D1,D16-W64,top8x64 over=heads out=my/pattern/best.yaml",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="+", metavar="key=value", help="model (a stage's id or a folder), budget, candidates, over, out "
        "and the other keys of docs/search.md; of a model folder also data=..., data.*, train.context"
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Search, write the pattern and the report, and print what was found.

    Raises:
        UsageError, ValueError: a mistake in the words, a model or data that is not there, a budget that nothing meets.
    """
    from ratplus.sweeps.runner.pattern_search import search
    from ratplus.sweeps.runner.search_words import parse

    section, overrides = parse(arguments.words)
    return search(section, overrides)
