"""Needles in a haystack: RULER's eight NIAH tasks (arXiv 2404.06654) from a seeded generator, for any tokenizer.

A needle says the value of a key, the haystack hides it, the question asks for it. Prompts are filled with haystack up
to a length in tokens. Our own words for keys and any text for a haystack, so items are not RULER's own; the tasks'
shapes are. Two scorers: `substring`, RULER's and lm-eval's, and `overlap`, the paper's.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from ratplus.config.eval import NIAH_TASKS, NIAH_TEMPLATES, NiahSection
from ratplus.data.needle_words import ADJECTIVES, NOISE, NOUNS, TEMPLATES, Words, words_of

DEPTHS = 40  # RULER's grid of places from the haystack's start to its end


@dataclass(frozen=True)
class Shape:
    """What a task hides: haystack (free: text or noise; noise; needles: more needles), and how many of what."""

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    needles: int = 1
    values_each: int = 1
    asked: int = 1


SHAPES = {
    "niah_single_1": Shape("noise"),
    "niah_single_2": Shape("free"),
    "niah_single_3": Shape("free", values="uuids"),
    "niah_multikey_1": Shape("free", needles=4),
    "niah_multikey_2": Shape("needles"),
    "niah_multikey_3": Shape("needles", keys="uuids", values="uuids"),
    "niah_multivalue": Shape("free", values_each=4),
    "niah_multiquery": Shape("free", needles=4, asked=4),
}
assert tuple(SHAPES) == NIAH_TASKS
assert tuple(TEMPLATES) == NIAH_TEMPLATES


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        answers: the values that are asked for, in the order of the needles.
        depths: of those needles, from 0 (the haystack's start) to 1.
        new_tokens: room for an answer.
        places: (start, end) in characters of the prompt, of each of the answers where its needle says it.
        gap: what a text that answers begins with.
    """

    prompt: str
    answers: tuple[str, ...]
    depths: tuple[float, ...]
    new_tokens: int
    places: tuple[tuple[int, int], ...]
    gap: str = " "

    @property
    def reply(self) -> str:
        """The text that answers, behind the prompt."""
        return self.gap + ", ".join(self.answers)


def generate(
    task: str,
    tokenizer,
    samples: int,
    length: int,
    *,
    haystack: str | None = None,
    template: str = "ruler",
    new_tokens: int | None = None,
    digits: int | None = None,
    seed: int = 0,
) -> list[Item]:
    """Items of a task: prompts of at most `length` tokens together with `new_tokens` for the answer.

    Args:
        tokenizer: only its `encode` is used.
        haystack: text to hide needles in, where the task leaves a choice; None takes RULER's noise.
        new_tokens: None takes what the longest answer needs, and 8 more.
        digits: of numbers; None takes the template's.
        seed: item i of a task is a pure function of (task, seed, i) and the arguments.

    Raises:
        ValueError: an unknown task, or a length that has no room for the question.
    """
    drafts, new_tokens = _drafts(task, tokenizer, samples, length, template, new_tokens, digits, seed)
    sentences = sentences_for(task, haystack)
    return [draft.filled(tokenizer, sentences, length, new_tokens) for draft in drafts]


def _drafts(
    task: str,
    tokenizer,
    samples: int,
    length: int,
    template: str,
    new_tokens: int | None,
    digits: int | None,
    seed: int,
) -> tuple[list[Draft], int]:
    """Items without their haystacks, each of which fits the length so; and the room for an answer."""
    if task not in SHAPES:
        raise ValueError(f"task: got {task!r}; allowed: {', '.join(SHAPES)}")
    shape, words = SHAPES[task], words_of(template, digits)
    drafts = [Draft(shape, words, random.Random(f"{task}/{seed}/{index}")) for index in range(samples)]
    if new_tokens is None:
        new_tokens = max(draft.room(tokenizer) for draft in drafts)
    for draft in drafts:
        draft.check_fits(tokenizer, length, new_tokens, f"eval.niah.length: got {length}, but {task}", template)
    return drafts, new_tokens


def training_draft(task: str, index: int, template: str = "ruler", digits: int | None = None, seed: int = 0) -> Draft:
    """Item number `index` of a task's train split, without its haystack.

    Neither it nor its like is ever asked by `generate`: it comes from another stream, and its keys are an evaluation's
    words turned round (`anchor-amber`) or fresh random numbers. The template `letters` alone has too few keys to keep
    some of them apart: there values, places and haystack are other ones.
    """
    draw = random.Random(f"{task}/train/{seed}/{index}")
    return Draft(SHAPES[task], words_of(template, digits), draw, turned=True)


def sentences_for(task: str, haystack: str | None) -> list[str]:
    """What hides a task's needles: sentences of the text where the task leaves a choice, else of RULER's noise."""
    return _sentences(haystack if haystack is not None and SHAPES[task].haystack == "free" else NOISE)


def overlap(text: str, answers: Sequence[str]) -> float:
    """The paper's score: share of the answers among the comma-separated parts of a text, word for word."""
    given = {part.strip() for part in text.split(",")}
    return len(given & set(answers)) / len(set(answers))


def substring(text: str, answers: Sequence[str]) -> float:
    """RULER's score (`string_match_all`): share of the answers that occur anywhere in a text, upper or lower case."""
    return sum(answer.lower() in text.lower() for answer in answers) / len(answers)


class Draft:
    """An item before its haystack is measured out; `turned` keys of two words have the noun first."""

    def __init__(self, shape: Shape, words: Words, draw: random.Random, turned: bool = False):
        self.shape, self.words, self.draw, self.turned = shape, words, draw, turned
        self.kind = shape.values if shape.asked * shape.values_each > 1 else shape.values.removesuffix("s")
        self._fresh_keys = self._keys()
        keys = [next(self._fresh_keys) for _ in range(shape.needles)]
        asked = sorted(draw.sample(range(shape.needles), shape.asked))
        self.query = _listed([keys[i] for i in asked])
        self.needles: list[str] = []
        self.depths: list[float] = []
        self._told: list[tuple[str, str]] = []  # key and value of each needle
        answers, depths, said = [], [], []
        for index, key in enumerate(keys):
            for _ in range(shape.values_each):
                value, depth = self._value(), draw.randrange(DEPTHS) / (DEPTHS - 1)
                self.needles.append(self._needle(key, value))
                self.depths.append(depth)
                self._told.append((key, value))
                if index in asked:
                    answers.append(value)
                    depths.append(depth)
                    said.append(self.needles[-1])
        self.answers, self.asked_depths = tuple(answers), tuple(depths)
        self._asked_needles = said
        self._first = draw.random()  # where in the text this item's haystack begins
        self._others: list[str] = []

    def room(self, tokenizer) -> int:
        """Tokens of the answer, and 8 more."""
        return 8 + len(tokenizer.encode(self.words.gap + ", ".join(self.answers)))

    def more_questions(self, count: int) -> list[tuple[str, str]]:
        """`count` more questions about the same haystack, each with the text that answers it.

        Each is about one of the needles, drawn anew, so that no answer can be told from what was asked before. They
        take draws: ask once.
        """
        assert self.shape.asked * self.shape.values_each == 1, "for tasks that ask for one needle"
        drawn = [self.draw.choice(self._told) for _ in range(count)]
        return [(self._question(key), self.words.gap + value) for key, value in drawn]

    def check_fits(self, tokenizer, length: int, new_tokens: int, where: str, template: str) -> None:
        """Raises ValueError if the question alone is too long; `where` says which length was given for what."""
        needed = self.tokens(tokenizer, [], 0) + new_tokens
        if needed > length:
            section = where.partition(".length")[0]
            shorter = "" if template != "ruler" else f", or take the few words of {section}.template=short"
            raise ValueError(f"{where} needs {needed} tokens for its question and answer alone; give more{shorter}")

    def tokens(self, tokenizer, sentences: list[str], count: int) -> int:
        """How many tokens the prompt has with the first `count` sentences as its haystack."""
        return len(tokenizer.encode(self._prompt(sentences, count)))

    def filled(self, tokenizer, sentences: list[str], length: int, new_tokens: int) -> Item:
        """With as much haystack as fits; that none of it fits is not looked for here."""

        def fits(count: int) -> bool:
            return self.tokens(tokenizer, sentences, count) + new_tokens <= length

        low, high = 0, 1
        while fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        prompt = self._prompt(sentences, low)
        return Item(prompt, self.answers, self.asked_depths, new_tokens, self._places(prompt), self.words.gap)

    def _places(self, prompt: str) -> tuple[tuple[int, int], ...]:
        """Where the prompt says each answer: a needle has a key that no other has, so its text stands there once."""
        ends = [
            prompt.index(needle) + needle.rindex(value) + len(value)
            for needle, value in zip(self._asked_needles, self.answers)
        ]
        return tuple((end - len(value), end) for end, value in zip(ends, self.answers))

    def _prompt(self, sentences: list[str], count: int) -> str:
        hay = self._hay(sentences, count)
        # The deepest first, so that the places of the others stay what they are.
        for depth, needle in sorted(zip(self.depths, self.needles), key=lambda pair: -pair[0]):
            hay.insert(round(depth * count), needle)
        start = self.words.start.format(self._phrase(0), kind=self.kind)
        return start + " ".join(hay) + self._question(self.query)

    @property
    def _several(self) -> bool:
        return self.shape.asked * self.shape.values_each > 1

    def _phrase(self, number: int) -> str:
        return (self.words.several if self._several else self.words.single)[number].format(kind=self.kind)

    def _question(self, query: str) -> str:
        verb = "are" if self._several else "is"
        return self.words.end.format(self._phrase(1), verb, kind=self.kind, query=query)

    def _hay(self, sentences: list[str], count: int) -> list[str]:
        if self.shape.haystack == "needles":
            while len(self._others) < count:
                self._others.append(self._needle(next(self._fresh_keys), self._value()))
            return self._others[:count]
        first = int(self._first * len(sentences)) if len(sentences) > count else 0
        return [sentences[(first + i) % len(sentences)] for i in range(count)]

    def _needle(self, key: str, value: str) -> str:
        return self.words.needle.format(kind=self.shape.values, key=key, value=value)

    def _keys(self) -> Iterator[str]:
        """Keys that are all different."""
        if self.shape.keys == "uuids":
            while True:
                yield self._uuid()
        pairs = list(self.words.keys or "")
        pairs = pairs or [f"{b}-{a}" if self.turned else f"{a}-{b}" for a, b in product(ADJECTIVES, NOUNS)]
        self.draw.shuffle(pairs)
        yield from pairs
        number = 2
        while True:
            yield from (f"{pair}-{number}" for pair in pairs)
            number += 1

    def _value(self) -> str:
        if self.shape.values == "uuids":
            return self._uuid()
        return str(self.draw.randrange(10 ** (self.words.digits - 1), 10**self.words.digits))

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.draw.getrandbits(128), version=4))


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f", and {names[-1]}"


def _sentences(text: str) -> list[str]:
    """Sentences of a text in one line each; what has none of them is one sentence."""
    parts = [" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", text)]
    return [part for part in parts if part] or [" ".join(text.split()) or NOISE]


# ---- as a suite ---------------------------------------------------------------------------------------------------


def section_items(section: NiahSection, tokenizer, length: int, haystack: str | None) -> dict[str, list[Item]]:
    """{task: items} of `eval.niah`; `length` is train.context, `haystack` held-out text (None: noise).

    Raises:
        ValueError: the length has no room for a task's question and answer.
    """
    return {
        task: generate(
            task, tokenizer, section.samples, section.length or length, haystack=haystack, template=section.template,
            new_tokens=section.new_tokens, digits=section.digits, seed=section.seed,
        )
        for task in section.tasks
    }  # fmt: skip


def check_section(section: NiahSection, tokenizer, length: int) -> None:
    """Refuse a length that a task's questions do not fit, before anything is trained. Raises ValueError."""
    for task in section.tasks:
        _drafts(
            task, tokenizer, section.samples, section.length or length, section.template, section.new_tokens,
            section.digits, section.seed,
        )  # fmt: skip
