"""Short names of a head's pattern and back: `D16-W256-I4`, `D64-top8x64`, `quest16x64-decode`, `snap1024x64-max7`.

The static part stands first, D<dilation> or stream, then W<window> and I<sinks>. A label that begins with the selection
has no dilation, window or sinks.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

from ratplus.pattern.fields import SELECTION

# Word before <K>x<block> -> score of the blocks and which keys they are made of.
_TOP_WORDS = {
    "top": ("mean", "all"), "quest": ("bounds", "all"), "random": ("random", "all"),
    "ktop": ("mean", "kept"), "kquest": ("bounds", "kept"), "krandom": ("random", "kept"),
}  # fmt: skip
_STATIC = re.compile(r"(?:D(?P<dilation>\d+)|(?P<stream>stream))(?:-W(?P<window>\d+))?(?:-I(?P<sinks>\d+))?")
_TOP = re.compile(
    r"(?P<word>" + "|".join(_TOP_WORDS) + r")(?P<top>\d+)x(?P<block>\d+)"
    r"(?P<nofirst>-nofirst)?(?:-(?P<phase>decode|prefill))?(?:-seed(?P<seed>\d+))?"
)
_SNAP = re.compile(r"snap(?P<snap>\d+)x(?P<observe>\d+)(?:-(?P<pool>avg|max)(?P<kernel>\d+))?")
# Every word that a label may hold, for the nearest one to a word that it may not: the word without its numbers.
_WORDS = {
    "D": "D16", "stream": "stream", "W": "W256", "I": "I4",
    **{word: f"{word}16x64" for word in _TOP_WORDS},
    "nofirst": "nofirst", "decode": "decode", "prefill": "prefill", "seed": "seed1",
    "snap": "snap1024x64", "avg": "avg5", "max": "max7",
}  # fmt: skip
ALLOWED = (
    "D<dilation> or stream, then -W<window> and -I<sinks>, such as D16, D16-W256-I4, stream-W1024-I4; then or alone "
    "a selection: top16x64, quest16x64-decode, D64-top8x64, random16x64-seed1, snap1024x64"
)


def label_of(pattern: Any) -> str:
    """Short name of a pattern; `fields_of` reads it back."""
    p, parts = pattern, []
    chosen = p.top is not None or p.snap is not None
    if not chosen or p.dilation is not None or p.window or p.sinks:
        parts.append("stream" if p.dilation is None else f"D{p.dilation}")
    if p.window:
        parts.append(f"W{p.window}")
    if p.sinks:
        parts.append(f"I{p.sinks}")
    if p.top is not None:
        word = next(word for word, meaning in _TOP_WORDS.items() if meaning == (p.score, p.over))
        parts.append(f"{word}{p.top}x{p.block}")
        parts += [] if p.first else ["nofirst"]
        parts += [] if p.phase == "both" else [p.phase]
        parts += [f"seed{p.seed}"] if p.seed else []
    if p.snap is not None:
        parts.append(f"snap{p.snap}x{p.observe}")
        if (p.kernel, p.pool) != (SELECTION["kernel"], SELECTION["pool"]):
            parts.append(f"{p.pool}{p.kernel}")
    return "-".join(parts)


def is_label(text: str) -> bool:
    """Whether a text has the form of a label; its numbers may still be impossible."""
    return _split(text) is not None


def fields_of(label: str) -> dict[str, Any]:
    """The fields of the pattern that a label stands for, those that it leaves open left out.

    Raises:
        ValueError: a text that is no label; the line names the nearest word to the one that is not known.
    """
    found = _split(label)
    if found is None:
        raise ValueError(f"pattern {label!r}: not a label; allowed: {ALLOWED}{_nearest(label)}")
    static, top, snap = found
    fields: dict[str, Any] = {"dilation": None, "window": 0, "sinks": 0}
    if static is not None:
        fields |= {name: int(static[name] or 0) for name in ("window", "sinks")}
        fields["dilation"] = None if static["stream"] else int(static["dilation"])
    if top is not None:
        score, over = _TOP_WORDS[top["word"]]
        fields |= {"top": int(top["top"]), "block": int(top["block"]), "score": score, "over": over}
        fields |= {"first": top["nofirst"] is None, "phase": top["phase"] or "both", "seed": int(top["seed"] or 0)}
    if snap is not None:
        fields |= {"snap": int(snap["snap"]), "observe": int(snap["observe"])}
        if snap["pool"]:
            fields |= {"pool": snap["pool"], "kernel": int(snap["kernel"])}
    return fields


def _split(label: str):
    """Matches of the static part, of block top-k and of SnapKV, each None where it is not there; None: no label."""
    static = _STATIC.match(label)
    if static is not None and static.end() == len(label):
        return static, None, None
    if static is not None:
        if label[static.end()] != "-":
            return None
        rest = label[static.end() + 1 :]
    else:
        rest = label
    top, snap = _TOP.fullmatch(rest), _SNAP.fullmatch(rest)
    return None if top is None and snap is None else (static, top, snap)


def _nearest(label: str) -> str:
    """End of the line, for the first word of a text that no label has: the nearest one; empty where none is near."""
    words = {word.lower(): word for word in _WORDS}
    for text in label.split("-"):
        letters = re.split(r"\d", text)[0]
        if letters in _WORDS:
            continue
        close = difflib.get_close_matches(letters.lower(), words, n=1)
        if close:
            word = words[close[0]]
            return f"; {text!r} is unknown, did you mean {word}, as in {_WORDS[word]}?"
    return ""
