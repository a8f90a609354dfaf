"""What `generate`, `best` and packs say and take at their limits, called directly."""

import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.share import unpack
from ratplus.sweeps.verbs import best, generate

CONFIG = ModelConfig(257, 1, 8, 4, max_len=64)


# ---- texts ---------------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer whose every id is one letter, or half of one."""

    eos_id = 256

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")

    def chat(self, messages):
        return [(message["role"], message["content"]) for message in messages]

    def stop_ids(self):
        return {ord("!")}


def request(**keys):
    return generate.parse([f"{key}={value}" for key, value in ({"model": "m", "prompt": "ab"} | keys).items()])


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        ({}, [97, 98]), ({"prompt": ""}, [256]), ({"chat": "true"}, [("user", "ab")]),
        ({"chat": "true", "prompt": ""}, [("user", "")]),
        ({"chat": "true", "system": "be"}, [("system", "be"), ("user", "ab")]),
    ],
)  # fmt: skip
def test_what_a_model_is_given(keys, ids):
    """A text is continued; without any, what begins one is."""
    assert generate._prompt_ids(request(**keys), Words()) == ids


@pytest.mark.parametrize(
    ("keys", "tokens", "printed", "count"),
    [
        ({}, b"xyz", "abxyz", 3),
        ({}, b"x!z", "abx!z", 3),
        ({"chat": "true"}, b"x!z", "ab\n\nx!", 2),
        ({}, "é".encode() + b"x", "abéx", 3),
        ({}, b"\xc3", "ab", 1),  # half a character is not printed
        ({}, b"", "ab", 0),
    ],
)
def test_a_text_as_it_comes(monkeypatch, capsys, keys, tokens, printed, count):
    monkeypatch.setattr("ratplus.model.generate.stream", lambda *a, **k: iter([torch.tensor(t) for t in tokens]))
    asked = request(**keys)
    made, seconds = generate._stream(None, Words(), [1], None, asked)
    assert (capsys.readouterr().out, made) == (printed, count)
    assert seconds >= 0


@pytest.mark.parametrize(
    ("count", "seconds", "speed"),
    [(3, 4.0, "0.5 tokens/s, "), (2, 0.5, "2.0 tokens/s, "), (1, 4.0, ""), (0, 4.0, ""), (3, 0.0, "")],
)
def test_tokens_a_second_are_those_after_the_first(count, seconds, speed):
    pattern = PatternMap.uniform(Pattern(4), 1, 2)
    line = generate._cost(CONFIG, pattern, 16, count, seconds, torch.float32)
    # 4 kept entries of 16 tokens and the newest; keys and values of two heads of 4 channels, 4 bytes each.
    assert line.startswith(f"[{count} tokens, {speed}cache: ")
    assert " of 16 entries a head, " in line


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("modl=x", "generate: 'modl=x': did you mean model=?"),
        ("qqqq=x", "generate: 'qqqq=x': give key=value; keys: "),
        ("model", "generate: 'model': give key=value; keys: "), ("chat=yes", "chat: got 'yes'; allowed: true, false"),
        ("seed=x", "seed: got 'x'; it must be a whole number"), ("top_p=x", "top_p: got 'x'; it must be a number"),
        ("seed=-1", "seed: got -1; it must be ≥ 0 and below 2^63"),
        (f"seed={1 << 63}", "seed: got 9223372036854775808;"),
        ("max_new_tokens=0", "max_new_tokens: got 0; it must be ≥ 1"),
        ("system=a", "system: got 'a'; only chat=true has a system's message"),
    ],
)  # fmt: skip
def test_words_that_are_none(word, line):
    with pytest.raises(UsageError) as caught:
        generate.parse(["model=m", "prompt=a", word])
    assert str(caught.value).startswith(line)


def test_words_on_their_limit():
    found = generate.parse(
        ["model=m", "prompt=a=b", f"seed={(1 << 63) - 1}", "max_new_tokens=1", "chat=true", "system=", "top_p=1"]
    )
    assert (found.prompt, found.seed, found.max_new_tokens) == ("a=b", (1 << 63) - 1, 1)
    assert (found.chat, found.system, found.top_p) == (True, "", 1.0)
    assert found.given == {"model", "prompt", "seed", "max_new_tokens", "chat", "system", "top_p"}
    for words, line in ((["prompt=a"], "model= is missing"), (["model=a"], "prompt= is missing")):
        with pytest.raises(UsageError, match=f"^generate: {line}; give "):
            generate.parse(words)


# ---- the best row --------------------------------------------------------------------------------------------------


def row(number: int, **keys) -> dict:
    return {
        "run": f"m{number}", "pattern": f"D{number}", "value": 1.0 + number, "ci": [1.0, 2.0], "tied": "1 seed",
        "costs": {"kv_ratio": 0.123456}, "p": 0.04567, "difference": 0.5, "pm": 0.25, "cells": ["x"], "seeds": 1,
        "stderr": 0.125,
    } | keys  # fmt: skip


@pytest.mark.parametrize("ties", [0, 1, 2])
def test_ties_of_the_best_are_shown_up_to_a_limit(monkeypatch, capsys, ties):
    monkeypatch.setattr(best, "_MOST_TIES", 1)
    monkeypatch.setattr("ratplus.analysis.paired.best.shown_value", lambda row, unit, *what: f"{row['value']:g}")
    rows = [row(number) for number in range(ties + 1)]
    choice = {
        "winner": rows[0], "best": rows[0], "ties": rows[1:], "unit": "%", "metric": "loss", "why": "it is lowest",
        "left_out": {"without a value": 2} if ties else {}, "how": "by pairs" if ties == 1 else "",
    }  # fmt: skip
    best._show(choice, {"dilation": 4, "window": None}, "ratplus adapt")
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["m0 D0: loss 1 %", "  why: it is lowest"]
    assert ("  not among them: 2 without a value" in said) == bool(ties)
    assert ("1 more ties: --json" in said) == (ties == 2)
    assert ("by pairs" in said) == (ties == 1)
    named = [line for line in said if " D1 " in line]
    assert len(named) == min(ties, 1)
    assert any("D2" in line for line in said) is False
    if ties:
        assert named[0].split() == ["m1", "D1", "2", "2", "0.046", "1", "seed", "0.1235"]
        (own,) = [line for line in said if line.startswith("→")]
        assert own.split() == ["→", "m0", "D0", "1", "1", "seed", "0.1235"]
    assert said[-4:] == ["dilation: 4", "window: null", "", "ratplus adapt"]


def test_numbers_that_json_does_not_have():
    given = {"a": [1.5, float("nan"), (float("inf"), "x")], "b": {"c": -float("inf")}, "d": 3}
    assert best.plain_json(given) == {"a": [1.5, None, [None, "x"]], "b": {"c": None}, "d": 3}


# ---- packs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [("demo.pack.zip", "demo"), ("demo.zip", "demo"), ("demo", "demo"), ("a.pack.zip.zip", "a.pack.zip"),
     (".pack.zip", "pack"), (".zip", "pack")],
)  # fmt: skip
def test_the_name_of_a_pack(tmp_path, name, found):
    assert unpack.name_of(tmp_path / name) == found


def test_files_of_a_report_stay_where_a_folder_was_given(tmp_path):
    (tmp_path / "a").mkdir()
    assert unpack.brought_out([tmp_path / "a" / "x"], tmp_path / "a") == [tmp_path / "a" / "x"]


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("sweep.json", True), ("pack.json", True), ("other.json", False), ("evaluate/0123456789ab/record.json", True),
        ("sft/0123456789ab/curve.csv", True), ("other/0123456789ab/record.json", False),
        ("evaluate/0123456789ab/note.txt", True), ("evaluate/0123456789ab/lock.json", False),
        ("evaluate/0123456789abc/record.json", False), ("evaluate/0123456789aB/record.json", False),
        ("report/a.html", True), ("report/a.json", False), ("report/a.b/c.html", False), ("bench/a.json", True),
        ("bench/a.csv", False), ("report/.a.html", False), (f"report/{'a' * 195}.html", True),
        (f"report/{'a' * 196}.html", False), ("report/a b-c+d=e,f.png", True), ("report/a\n.png", False),
        ("x/report/a.png", False),
    ],
)  # fmt: skip
def test_what_a_pack_may_hold(name, member):
    assert unpack.is_member(name) is member


def test_errors_name_the_pack(monkeypatch, tmp_path):
    monkeypatch.setattr(unpack, "_packs", {"/tmp/x/demo": tmp_path / "demo.pack.zip"})
    assert unpack.naming_packs("/tmp/x/demo/a and /tmp/y") == f"{tmp_path}/demo.pack.zip/a and /tmp/y"
