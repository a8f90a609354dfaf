"""Plain values as a typed config: what is shared is copied, and what is wrong is one line."""

import pytest

from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.typed import typed, typed_section


def test_sections_are_copies():
    """Cells share what was validated once, and a change of one cell's is no change of another's."""
    first, second = typed({"data": {"recall": {"keys": 9}}}), typed({"data": {"recall": {"keys": 9}}})
    first.data.recall.keys = 3
    first.logger.tags.append("a")
    assert (second.data.recall.keys, second.logger.tags) == (9, [])
    one = typed_section("eval", {"tasks": ["a"]})
    one.tasks.append("b")
    assert typed_section("eval", {"tasks": ["a"]}).tasks == ["a"]
    assert typed({"objective": ["a", "b"]}).objective == ["a", "b"]
    assert typed({"seed": 7}).seed == 7
    assert typed({}).seed == 0


@pytest.mark.parametrize(
    ("plain", "line"),
    [
        ({"data": {"path": "${oc.env:HOME}"}}, "data.path: got '${oc.env:HOME}'; ${...} is resolved in config files"),
        ({"data": {"${a}": 1}}, "data.${a}: got 1; ${...} is resolved in config files and overrides alone"),
        ({"nonsense": 1}, "nonsense"),
        ({"data": {"nonsense": 1}}, "data.nonsense"),
        ({"seed": "x"}, "seed"),
        ({"train": {"context": 1}}, "train.context: got 1; it must be ≥ 2"),
    ],
)
def test_a_wrong_value_is_one_line(plain, line):
    with pytest.raises(UsageError) as caught:
        typed(plain)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    (name, section), *_ = plain.items()
    if isinstance(section, dict):
        with pytest.raises(UsageError) as alone:
            typed_section(name, section)
        assert str(alone.value) == str(caught.value)
