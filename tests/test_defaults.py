"""Defaults that callers rely on are as they were: see tests/defaults.py."""

from __future__ import annotations

import defaults


def test_defaults_and_public_constants_are_as_they_were():
    before, now = defaults.PAGE.read_text().splitlines(), defaults.page().splitlines()
    other = [f"- {line}" for line in before if line not in now] + [f"+ {line}" for line in now if line not in before]
    assert now == before, "if all of this is meant, run `python tests/defaults.py`:\n" + "\n".join(other)


def test_all_kinds_of_defaults_are_looked_at():
    page = defaults.PAGE.read_text().splitlines()
    for line in (
        "ratplus/costs/cost.py cost(recurrence=False, bytes_per_element=BYTES_PER_ELEMENT)",
        "ratplus/costs/cost.py STATE_BYTES_PER_ELEMENT = 4",
        "ratplus/pattern/one_head.py Pattern: kernel=5",
        "ratplus/pattern/one_head.py Pattern.visible_from(layer=0, head=0)",
    ):
        assert line in page
