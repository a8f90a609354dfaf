"""`ratplus generate model=... prompt=... pattern=...`: stream text of a trained model under each pattern in turn."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import time
from dataclasses import dataclass
from typing import Any

from ratplus.records.lines import plain
from ratplus.sweeps.define.mistakes import UsageError

HELP = "continue a prompt with a trained model, under one or several patterns"
EXAMPLES = [
    "ratplus generate model=outputs/demo/pretrain/a12949d9c432 prompt='Return the' pattern=D1,D16",
    "ratplus generate model=models/smollm2 prompt='What is the capital of France?' chat=true temperature=0",
]
_KEYS = {
    "model": None, "prompt": None, "pattern": None, "max_new_tokens": 128, "temperature": 0.8, "top_p": 0.95, "seed": 0,
    "tokenizer": None, "sweep": None, "chat": False, "system": None,
}  # fmt: skip
_PLACES = ("model", "tokenizer", "sweep")


@dataclass
class Request:
    """What the words of the command line ask for."""

    model: str
    prompt: str
    pattern: str | None
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    tokenizer: str | None
    sweep: str | None
    chat: bool
    system: str | None
    given: set[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="+", help="model=FOLDER or stage id, prompt=TEXT, pattern=D1,D16-W64,layers[D1,D64]; also "
        "max_new_tokens, temperature (0 is greedy), top_p, seed, tokenizer, sweep=FOLDER, chat=true (the "
        "prompt is a user's message, through the model's chat template), system=TEXT"
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Print the continuation of a prompt under each pattern, and what it cost.

    Raises:
        UsageError, ValueError: a mistake in the words, or a model that can't be loaded.
    """
    request = parse(arguments.words)
    model, tokenizer, default = _load(request)
    ids = _prompt_ids(request, tokenizer)
    if request.pattern is None:
        names, patterns = [default.label], [default]
    else:
        names = re.findall(r"(?:[^,\[]|\[[^\]]*\])+", request.pattern)  # commas within brackets belong to a label
        patterns = [_pattern(name, model.config) for name in names]
    room = model.config.max_len - len(ids) + 1
    if "max_new_tokens" not in request.given:
        request.max_new_tokens = max(1, min(request.max_new_tokens, room))
    if request.max_new_tokens > room:
        raise UsageError(
            f"max_new_tokens: got {request.max_new_tokens}; after a prompt of {len(ids)} tokens the model's context of "
            f"{model.config.max_len} leaves {max(room, 0)}"
        )
    for name, pattern in zip(names, patterns):
        print(f"--- {name} ---")
        count, seconds = _stream(model, tokenizer, ids, pattern, request)
        print(f"\n{_cost(model.config, pattern, len(ids) + count - 1, count, seconds, model.embed.weight.dtype)}\n")
    return 0


def parse(words: list[str]) -> Request:
    """Read `key=value` words as a request.

    Raises:
        UsageError: an unknown or missing key, or a value of the wrong kind.
    """
    values: dict[str, Any] = dict(_KEYS)
    given = set()
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, n=1)
            raise UsageError(f"generate: {word!r}: " + (f"did you mean {close[0]}=?" if close and sign else
                             f"give key=value; keys: {', '.join(_KEYS)}"))  # fmt: skip
        kind = type(_KEYS[key])
        if kind is bool:
            if value not in ("true", "false"):
                raise UsageError(f"{key}: got {value!r}; allowed: true, false")
            value = value == "true"
        elif kind in (int, float):
            try:
                value = kind(value)
            except ValueError:
                what = "a whole number" if kind is int else "a number"
                raise UsageError(f"{key}: got {value!r}; it must be {what}") from None
        if key in _PLACES and isinstance(value, str) and value.startswith("~"):
            from ratplus.sweeps.define.override_words import home_of

            value = home_of(key, value)
        values[key] = value
        given.add(key)
    for key, what in (("model", "a model folder, or the id of a trained stage"), ("prompt", "the text to continue")):
        if values[key] is None:
            raise UsageError(f"generate: {key}= is missing; give {what}")
    try:
        values["prompt"].encode()
    except UnicodeEncodeError:
        raise UsageError(
            "prompt: not UTF-8 text; the terminal or the script that gave it uses another encoding"
        ) from None
    if values["system"] is not None and not values["chat"]:
        raise UsageError(f"system: got {values['system']!r}; only chat=true has a system's message")
    if not 0 <= values["seed"] < 1 << 63:
        raise UsageError(f"seed: got {values['seed']}; it must be ≥ 0 and below 2^63")
    if values["max_new_tokens"] < 1:
        raise UsageError(f"max_new_tokens: got {values['max_new_tokens']}; it must be ≥ 1")
    return Request(**values, given=given)


def _load(request: Request):
    """Load the model, its tokenizer and its default pattern, from a folder or from a stage of a sweep."""
    from ratplus.stages.load import load

    found = load(request.model, request.sweep, request.tokenizer)
    if found.tokenizer is None:
        raise UsageError(
            f"model={request.model}: nothing there says which tokenizer it was trained with; give tokenizer=bytes, a "
            "tokenizer.json, a .model, or a folder that holds one"
        )
    import torch

    model = found.model.cuda() if torch.cuda.is_available() else found.model
    return model, found.tokenizer, found.patterns


def _prompt_ids(request: Request, tokenizer) -> list[int]:
    """Ids of the prompt, as a text that is to be continued or as a user's message of a chat."""
    if not request.chat:
        return tokenizer.encode(request.prompt) or [tokenizer.eos_id]
    system = [] if request.system is None else [{"role": "system", "content": request.system}]
    return tokenizer.chat([*system, {"role": "user", "content": request.prompt}])


def _pattern(name: str, config):
    from ratplus.pattern import PatternMap

    try:
        return PatternMap.from_label(name.strip(), config.layers, config.heads)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _stream(model, tokenizer, ids: list[int], pattern, request: Request) -> tuple[int, float]:
    """Print tokens as they come; returns how many, and the seconds of decoding without the prompt."""
    from ratplus.model.generate import stream

    steps = stream(
        model, [ids], pattern, request.max_new_tokens, temperature=request.temperature, top_p=request.top_p,
        stop_token=tokenizer.eos_id, seed=request.seed,
    )  # fmt: skip
    made: list[int] = []
    shown, started = "", 0.0
    # What a model says may be what somebody trained it to say: a terminal shows it, and obeys none of it.
    display = plain if sys.stdout.isatty() else str
    stops = tokenizer.stop_ids() if request.chat else set()
    sys.stdout.write(f"{request.prompt}\n\n" if request.chat else request.prompt)
    for token in steps:
        made.append(int(token))
        if len(made) == 1:
            started = time.perf_counter()
        # A character may take several tokens: it is printed once it is whole.
        text = tokenizer.decode(made).rstrip("\ufffd")
        if text.startswith(shown):
            sys.stdout.write(display(text[len(shown) :]))
            sys.stdout.flush()
            shown = text
        if made[-1] in stops:
            break
    return len(made), time.perf_counter() - started


def _cost(config, pattern, length: int, count: int, seconds: float, dtype) -> str:
    from ratplus.costs.of_model import model_cost

    spent = model_cost(config, pattern, length, dtype.itemsize)
    speed = f"{(count - 1) / seconds:.1f} tokens/s, " if count > 1 and seconds > 0 else ""
    entries = f"{spent.kv_entries_per_head:g} of {length} entries a head" if config.attends else "state of fixed size"
    held = f"{entries}, {spent.cache_bytes:,} bytes"
    read = (
        ""
        if spent.kv_read == spent.kv_entries
        else (f", {'' if spent.kv_read_exact else 'at most '}{spent.kv_read_per_head:g} of them read a step")
    )
    return f"[{count} tokens, {speed}cache: {held}{read}]"
