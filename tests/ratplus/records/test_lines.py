"""One line of what may be many."""

import pytest

from ratplus.records.lines import MOST_CHARACTERS, first_line, last_line


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("one", "one", "one"), ("one\ntwo", "one", "two"), ("\n\n one\n two \n \n", "one", "two"),
        ("", "ValueError", ""), (" \n ", "ValueError", ""),
    ],
)  # fmt: skip
def test_first_and_last_line(text, first, last):
    assert (first_line(ValueError(text)), last_line(text)) == (first, last)


def test_a_first_line_is_cut():
    assert first_line(ValueError("a" * 201 + "\nb")) == "a" * MOST_CHARACTERS == "a" * 200
