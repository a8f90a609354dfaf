"""A model's chat template: messages in, the text of a prompt out.

Templates are programs in Jinja's language that came with a model, perhaps a stranger's, so they run in Jinja's sandbox:
they see the messages and the names of special tokens, and can change or call nothing else. `jinja2` is there for the
report's page anyway; beside it stands what templates expect of transformers' `apply_chat_template`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from ratplus.records.lines import first_line
from ratplus.records.reading import open_plain, parse_json

TEMPLATE_FILE = "chat_template.jinja"
_CONFIG_FILE = "tokenizer_config.json"
_MOST_BYTES = 16 << 20  # of tokenizer_config.json, which may list thousands of added tokens, and of a prompt


class ChatError(ValueError):
    """A model has no chat template, or its template does not take these messages."""


def prompt_of(folder: Path, messages: Sequence[Mapping[str, str]]) -> str:
    """The text that a model's template makes of messages, up to where its answer begins.

    Args:
        folder: that holds the template: chat_template.jinja, or the word `chat_template` of tokenizer_config.json.
        messages: {"role": "system" | "user" | "assistant", "content": text}, first to last.

    Raises:
        ChatError: no template, a damaged one, or messages that it refuses.
    """
    said = _said(folder)
    template = _template(folder, said)
    if template is None:
        raise ChatError(f"{folder}: the model has no chat template ({TEMPLATE_FILE}); prompt it without chat=true")
    tokens = {key: _content(value) for key, value in said.items() if key.endswith("_token")}
    import jinja2

    given = {"messages": [dict(message) for message in messages], "add_generation_prompt": True, "tools": None}
    try:
        text = ""
        for part in _compiled(template).generate(**given, documents=None, **tokens):
            text += part
            if len(text) > _MOST_BYTES:
                raise ValueError(f"its text has more than {_MOST_BYTES:,} characters")
        return text
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise ChatError(f"{folder}: its chat template fails ({first_line(error)})") from None


def _said(folder: Path) -> dict[str, Any]:
    try:
        with open_plain(folder / _CONFIG_FILE, most=_MOST_BYTES) as file:
            said = parse_json(file.read())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ChatError(f"{folder / _CONFIG_FILE}: damaged ({first_line(error)})") from None
    return said if isinstance(said, dict) else {}


def _template(folder: Path, said: dict[str, Any]) -> str | None:
    try:
        with open_plain(folder / TEMPLATE_FILE, most=_MOST_BYTES) as file:
            return file.read().decode()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ChatError(f"{folder / TEMPLATE_FILE}: cannot be read ({first_line(error)})") from None
    found = said.get("chat_template")
    if isinstance(found, list):  # several by name
        named = [entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) else None


def _content(token: object) -> object:
    """The text of a special token, which may stand there in an object."""
    return token.get("content") if isinstance(token, dict) else token


@lru_cache(maxsize=8)
def _compiled(template: str):
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Environment(ImmutableSandboxedEnvironment):
        # The sandbox bounds ranges, but not what a product or a power makes of a few characters.
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context, operator, left, right):
            sizes = [x if isinstance(x, (int, float)) else len(x) for x in (left, right)]
            if operator == "**" or abs(sizes[0] * sizes[1]) > _MOST_BYTES:
                raise SecurityError(f"a product or power of more than {_MOST_BYTES:,}")
            return super().call_binop(context, operator, left, right)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: object, indent: int | None = None, **_: object) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja2's own escapes < and & for pages

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = as_json

    def now(form: str) -> str:
        return datetime.now().strftime(form)

    return environment.from_string(template, globals={"raise_exception": refuse, "strftime_now": now})
