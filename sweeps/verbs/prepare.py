"""`ratplus prepare`: tokenize a corpus, or finish one that was begun, and check it."""

from __future__ import annotations

import argparse
import time

from ratplus.sweeps.verbs import add_overrides

HELP = "tokenize a corpus and check it"
EXAMPLES = [
    "ratplus prepare data=text data.path=books/",
    "ratplus prepare data=files data.path=corpus/ data.tokenizer=tokenizer.json data.workers=8",
    "ratplus prepare data=fineweb_edu data.tokenizer=llama2/tokenizer.model data.workers=32",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prepare the corpus of a config, open it, and print what it holds.

    Raises:
        CorpusError, TokenizerError, UsageError: one line that says what to do.
    """
    from ratplus.data.corpus import SPLITS
    from ratplus.data.sources import corpus_of
    from ratplus.records.lines import plain
    from ratplus.sweeps.define.compose import compose_one

    data = compose_one(arguments.overrides, arguments.config_dir).config.data
    started = time.monotonic()
    corpus = corpus_of(data)
    tokenizer = corpus.manifest["tokenizer"]
    # The manifest may be a stranger's.
    print(
        plain(f"{corpus.folder}: {tokenizer['name']}, {tokenizer['vocab_size']:,} ids, "
              f"end of text {tokenizer['eos_id']}, {corpus.manifest['dtype']}")
    )  # fmt: skip
    for split in SPLITS:
        facts = corpus.manifest["splits"][split]
        shards = facts.get("shards", [facts])
        where = shards[0]["file"] if len(shards) == 1 else f"{len(shards)} files"
        print(
            f"  {split:<10} {facts['tokens']:>15,} tokens  {facts['documents']:>12,} documents  "
            f"{facts['bytes'] / 1e6:>12,.1f} MB in {plain(where)}"
        )
    print(f"{time.monotonic() - started:.1f} s")
    return 0
