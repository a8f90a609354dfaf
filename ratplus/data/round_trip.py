"""How much of a text its tokenizer keeps: characters that do not come back when its ids are decoded."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ratplus.data.corpus import CorpusError
from ratplus.data.tokenizer import ByteTokenizer, Tokenizer

# Of every so many documents one is looked at, chosen by its text, so that it is the same with any number of workers.
ONE_IN = 64
# And the first ones of each input, so that a small corpus is looked at as well; of each, so many characters.
FIRST, CHARACTERS = 32, 4096


@dataclass
class RoundTrip:
    """Characters that were tokenized and decoded again, and those that did not come back, of a sample of documents.

    White space is not counted, since tokenizers of LLaMA's kind normalise it on purpose.

    Attributes:
        seen: characters looked at.
        lost: of these, how many are missing from the decoded text; one that came back as another counts.
        examples: some of the lost ones, by how often.
    """

    seen: int = 0
    lost: int = 0
    examples: Counter = field(default_factory=Counter)
    documents: int = 0

    def look(self, tokenizer: Tokenizer, text: str) -> None:
        """Take a document into the sample, or leave it out."""
        self.documents += 1
        if isinstance(tokenizer, ByteTokenizer):
            return  # every text is its bytes
        head = text[:CHARACTERS]
        if self.documents > FIRST and hashlib.blake2b(head.encode(), digest_size=2).digest()[0] % ONE_IN:
            return
        given = _characters(head)
        missing = given - _characters(tokenizer.decode(tokenizer.encode(head)))
        self.seen += given.total()
        self.lost += missing.total()
        self.examples.update(missing)

    @property
    def share(self) -> float:
        """Of the characters looked at, those that were lost; 0 of none."""
        return self.lost / self.seen if self.seen else 0.0

    def facts(self) -> dict:
        """JSON-ready: of a shard's record."""
        return {"characters": self.seen, "lost": self.lost, "examples": dict(self.examples.most_common(8))}

    def line(self, tokenizer: Tokenizer) -> str:
        """What is said of a loss; empty if nothing was lost."""
        if not self.lost:
            return ""
        some = ", ".join(ascii(character)[1:-1] if not character.isprintable() else character
                         for character, _ in self.examples.most_common(8))  # fmt: skip
        share = f"{100 * self.share:.3g} %"
        return (
            f"{tokenizer.name} loses text: {self.lost:,} of {self.seen:,} characters looked at ({share}) do not come "
            f"back when ids are decoded, such as {some}"
        )


def _characters(text: str) -> Counter:
    # Some tokenizers compose characters (NFC, NFKC), which loses nothing that a reader would miss.
    return Counter(character for character in unicodedata.normalize("NFKC", text) if not character.isspace())


def merged(facts: Iterable[dict]) -> RoundTrip:
    """The sample of all inputs together; one of before it was taken adds nothing."""
    whole = RoundTrip()
    for one in facts:
        whole.seen += one.get("characters", 0)
        whole.lost += one.get("lost", 0)
        whole.examples.update(one.get("examples", {}))
    return whole


def check_loss(found: RoundTrip, tokenizer: Tokenizer, most: float) -> str:
    """What is to be said of a loss; empty if nothing was lost.

    Args:
        most: the largest share that is accepted (`data.lossy`).

    Raises:
        CorpusError: more was lost.
    """
    said = found.line(tokenizer)
    if said and found.share > most:
        raise CorpusError(
            f"{said}; data.lossy={most:g} allows {100 * most:g} %: use a tokenizer with byte fallback "
            f"(data.tokenizer), or accept the loss with data.lossy={_above(found.share):g}"
        )
    return said


def _above(share: float) -> float:
    """A round number that allows this share."""
    return next(limit for limit in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if limit >= share)
