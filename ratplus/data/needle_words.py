"""What the needle tasks are worded with: keys, noise, and three templates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

ADJECTIVES = (
    "amber", "ancient", "bitter", "bold", "brave", "bright", "calm", "careful", "clever", "cold", "crisp", "curious",
    "dark", "dusty", "eager", "early", "faint", "fair", "fancy", "fierce", "gentle", "glad", "grand", "heavy", "honest",
    "humble", "icy", "jolly", "keen", "late", "lively", "lucky", "mellow", "mild", "narrow", "noble", "odd", "pale",
    "patient", "plain", "proud", "quick", "quiet", "rapid", "rough", "rusty", "shy", "silent", "silver", "sturdy",
)  # fmt: skip
NOUNS = (
    "anchor", "apple", "badger", "barrel", "basket", "beacon", "bottle", "bridge", "button", "candle", "canyon",
    "carpet", "castle", "cellar", "cobbler", "compass", "copper", "cradle", "dragon", "engine", "falcon", "feather",
    "ferry", "garden", "hammer", "harbor", "helmet", "island", "kettle", "ladder", "lantern", "marble", "meadow",
    "mirror", "needle", "orchard", "paddle", "pepper", "pigeon", "pillow", "planet", "rabbit", "ribbon", "saddle",
    "sailor", "shovel", "spider", "tailor", "ticket", "violin",
)  # fmt: skip
# Capitals that the noise has not.
LETTERS = "BCDEFGKL"


@dataclass(frozen=True)
class Words:
    """A template: how a needle, the whole prompt and its question are worded.

    Attributes:
        digits: of a number to be found.
        gap: what an answer begins with, behind the prompt's end.
        keys: that needles have, of one letter each; None makes them of an adjective and a noun.
    """

    digits: int
    needle: str
    start: str
    end: str
    single: tuple[str, str] = ("", "")
    several: tuple[str, str] = field(default=("", ""))
    gap: str = " "
    keys: str | None = None


TEMPLATES = {
    "ruler": Words(
        digits=7,
        needle="One of the special magic {kind} for {key} is: {value}.",
        start="{0} hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the {kind} afterwards.\n",
        end="\nWhat {0} special magic {kind} for {query} mentioned in the provided text? "
        "The special magic {kind} for {query} mentioned in the provided text {1}",
        single=("A special magic {kind} is", "is the"),
        several=("Some special magic {kind} are", "are all the"),
    ),
    "short": Words(digits=4, needle="{key}: {value}.", start="", end="\n{query}:"),
    # As little as a needle can be: a value stands right behind its key, where one is stated and where it is asked for.
    "letters": Words(digits=2, needle="{key}{value}.", start="", end="\n{query}", gap="", keys=LETTERS),
}


def words_of(template: str, digits: int | None) -> Words:
    """A template, with numbers of so many digits."""
    return TEMPLATES[template] if digits is None else replace(TEMPLATES[template], digits=digits)
