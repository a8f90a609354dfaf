"""A tokenizer's file is read and used once in a process of its own, before this one does so.

The libraries behind it are written in Rust and C++, and a damaged or hostile file can make them abort the whole
process, fill the memory, or search for ever: nothing that an `except` would catch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

# Of the largest vocabularies that are published, files have some 40 MB and their libraries need 30 times as much.
MOST_BYTES = 256 << 20
_SPARED_BYTES, _TIMES = 3 << 30, 40
_SECONDS = 120
_MOST_IDS = 20  # for each character of the text that is tried
# What texts are made of: words, numbers, spaces, accents, other scripts, symbols.
_TEXT = 8 * "The quick brown fox, 3.14159 times:\n\tnaïve façade  —  语言模型 한국어 Ω 🙂 <s> {x} __init__(self)\n"
_NEEDED = ("PATH", "PYTHONPATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR")  # of the environment


@lru_cache(maxsize=64)
def problem_of(path: str, kind: str, _stamp: tuple[int, int]) -> str:
    """What is wrong with a tokenizer's file, in a few words; empty if it can be read and used.

    Args:
        kind: `huggingface` or `sentencepiece`, whose package is installed.
        _stamp: size and time of change of the file, which are part of what is remembered.
    """
    most = _SPARED_BYTES + _TIMES * Path(path).stat().st_size
    kept = {name: os.environ[name] for name in _NEEDED if name in os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TRIAL, path, kind, str(most), str(_MOST_IDS), _TEXT],
            env=kept | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"its library needs more than {_SECONDS} s for a page of text"
    if done.returncode < 0:
        return f"its library ends the process ({signal.Signals(-done.returncode).name}): damaged, or made to do so"
    said = done.stdout.strip().splitlines()
    return "" if said[-1:] == ["good"] else said[-1] if said else "its library fails on it"


# Our own code is not imported: the fewer things a process needs, the sooner it is there. The libraries raise bare
# exceptions, and panic with what is no Exception.
_TRIAL = """
import resource, sys
path, kind, most, most_ids, text = sys.argv[1:]
sys.stdout.reconfigure(errors="backslashreplace")
resource.setrlimit(resource.RLIMIT_AS, (int(most), int(most)))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
try:
    if kind == "huggingface":
        import tokenizers
        tokenizer = tokenizers.Tokenizer.from_file(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    else:
        import sentencepiece
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=path)
except BaseException as error:
    print("cannot be read: " + " ".join(str(error).split())[:300])
    sys.exit(1)
try:
    if kind == "huggingface":
        ids = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        count = tokenizer.get_vocab_size()
    else:
        ids = tokenizer.encode(text, num_threads=1)
        highest = count = 0
    if len(ids) > int(most_ids) * len(text):
        print(f"makes {len(ids):,} ids of {len(text):,} characters")
    elif highest > 4 * count + 100_000:
        print(f"has {count:,} tokens, but ids up to {highest:,}: a model would need a row of weights for each")
    else:
        tokenizer.decode(list(ids))
        print("good")
except Exception:
    print("good")  # it loads, and perhaps lacks a character of ours; whoever uses it hears what it cannot do
except BaseException as error:
    print("cannot encode a text: " + " ".join(str(error).split())[:300])
"""
