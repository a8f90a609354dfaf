"""What a stranger's chat template may multiply, and where it may stand."""

import json

import pytest

from ratplus.data.chat import _compiled, _content, _template


@pytest.mark.parametrize(
    ("expression", "text"),
    [("3 * 4", "12"), ("'ab' * 3", "ababab"), ("4096 * 4096", "16777216"), ("2 * -3", "-6"), ("0 * 10", "0")],
)
def test_small_products(expression, text):
    assert _compiled("{{ " + expression + " }}").render() == text


@pytest.mark.parametrize(
    "expression", ["2 ** 3", "'ab' * 8388609", "4096 * 4097", "-4096 * 4097", "[1, 2] * 9000000", "9000000 * 'ab'"]
)
def test_products_that_would_fill_the_memory(expression):
    from jinja2.sandbox import SecurityError

    with pytest.raises(SecurityError, match="a product or power of more than 16,777,216"):
        _compiled("{{ " + expression + " }}").render()


def test_where_a_template_stands(tmp_path):
    assert _template(tmp_path, {}) is None
    assert _template(tmp_path, {"chat_template": "a"}) == "a"
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}, 3]
    assert _template(tmp_path, {"chat_template": named}) == "d"
    assert _template(tmp_path, {"chat_template": named[:1]}) is None
    assert _template(tmp_path, {"chat_template": 3}) is None
    (tmp_path / "chat_template.jinja").write_text("file")
    assert _template(tmp_path, {"chat_template": "a"}) == "file", "the file goes before the config"
    assert (_content({"content": "<s>"}), _content("<s>"), _content(None)) == ("<s>", "<s>", None)
    assert json.loads(_compiled("{{ x | tojson }}").render(x={"a": "<&é"})) == {"a": "<&é"}
    assert _compiled("{{ x | tojson }}").render(x="<&é") == '"<&é"'
