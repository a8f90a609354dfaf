"""Keeping keys and tokens out of everything that is written: records, logs, job files and what W&B is told.

Torch-free, standard library only. `scrub` is for text, `scrub_words` for a command line, `scrub_tree` for nested
values, `safe_environment` for the few environment variables worth recording.

What counts as a secret: the value of an environment variable with a secret-looking name (WANDB_API_KEY, HF_TOKEN,
MY_SECRET, DB_PASSWORD), a value given to such a name in the text itself (`api_key=...`), credentials in a URL, and
texts of a well-known shape (Hugging Face, GitHub, OpenAI, AWS, Slack, W&B; bearer tokens; private keys).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import quote

MASK = "***"
# Whole parts of a name: `logger.api_key` is one, `data.recall.keys` and `tokenizer` are none.
_SECRET_PARTS = {
    "key", "apikey", "token", "secret", "secrets", "password", "passwd", "passphrase", "pwd", "pass", "credential",
    "credentials", "cred", "creds", "auth", "authorization", "cookie", "bearer", "sig", "sas",
}  # fmt: skip
# Ends of a part that several words were written together in: PGPASSWORD, GITHUBTOKEN. Only of a name in capitals, an
# environment variable, may the word be an everyday one.
_SECRET_ENDS = ("password", "passwd", "passphrase", "apikey", "accesskey", "secretkey", "authtoken")
_SECRET_ENDS_IN_CAPITALS = ("PASS", "PASSWORD", "PASSWD", "TOKEN", "SECRET", "CREDS", "CREDENTIALS")
_NO_SECRETS = ("BYPASS", "COMPASS")
# A shorter value of an environment variable is a word of ordinary text rather than a secret.
_SHORTEST = 6
# A value of this length is in no text by chance.
_LONG = 12

# Environment variables that change what a run does or say where it ran; everything else is nobody's business.
_ENVIRONMENT = re.compile(
    r"CUDA_\w+|NVIDIA_VISIBLE_DEVICES|OMP_\w+|MKL_\w+|OPENBLAS_NUM_THREADS|KMP_\w+|GOMP_CPU_AFFINITY|MALLOC_\w+"
    r"|RATPLUS_\w+|TRITON_\w+|PYTORCH_\w+|TORCH_\w+|TORCHINDUCTOR_\w+|TORCHDYNAMO_\w+|NCCL_\w+|GLOO_\w+"
    r"|WORLD_SIZE|RANK|LOCAL_RANK|LOCAL_WORLD_SIZE|NODE_RANK|PYTHONHASHSEED|WANDB_MODE|HYDRA_FULL_ERROR"
    r"|SLURM_(JOB_ID|JOB_NAME|ARRAY_JOB_ID|ARRAY_TASK_ID|NTASKS|NNODES|NODEID|PROCID|LOCALID|GPUS\w*|CPUS\w*"
    r"|JOB_PARTITION|JOB_NUM_NODES|RESTART_COUNT)"
)

# Bounded, and from the start of a word on, so that a megabyte without a space costs no more than its length.
_NAME = r"(?<![\w.])(?<![\w.]-)[A-Za-z_][\w.\-]{0,80}"
_VALUE = r"\"[^\"]*\"|'[^']*'|[^\s,;&\"')}\]]+"
_ASSIGNED = re.compile(rf"(?P<name>{_NAME})(?P<sign>[\"']?\s*(?:=|:)\s*)(?P<value>{_VALUE})")
# `user:password@` up to the last @, since passwords hold / and @ too, unless `host:port/` comes first; or `token@`.
_PASSWORD = r"[^\s/@:\"'<>]{0,128}:(?!\d{1,5}(?:/|\s|$))(?P<password>[^\s\"'<>]{1,256})"
_URL = re.compile(rf"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.\-]{{0,20}}://)(?:{_PASSWORD}|[^/\s@\"'<>]{{1,256}})@")
_URL_PASSWORD = re.compile(rf"://{_PASSWORD}@")
_NO_NAMES = ("Error", "Exception", "Warning")  # "KeyError: 'loss'"
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/\-]{8,}=*", re.IGNORECASE)
# Texts of a well-known shape, and how they begin. Few texts have any of the beginnings, and to look for these takes a
# thirtieth of what a pattern of all shapes does.
_SHAPES = (
    (("hf_",), r"\bhf_[A-Za-z0-9]{16,}"),
    (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
    (("github_pat_",), r"\bgithub_pat_\w{20,}"),
    (("glpat-",), r"\bglpat-[\w\-]{16,}"),
    (("sk-",), r"\bsk-[\w\-]{20,}"),
    (("xox",), r"\bxox[abeprs]-[\w\-]{10,}"),
    (("AKIA", "ASIA"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    (("wandb_v",), r"\bwandb_v\d_\w{20,}"),
    (("pypi-",), r"\bpypi-[\w\-]{20,}"),
    (("eyJ",), r"(?<![\w\-])eyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]{8,}"),
    (
        ("-----BEGIN ",),
        r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
    ),
)


def looks_secret(name: str) -> bool:
    """True for a name whose value should not be written: WANDB_API_KEY, --hf-token, logger.apiKey."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return any(
        part.lower() in _SECRET_PARTS
        or part.lower().endswith(_SECRET_ENDS)
        or (part.endswith(_SECRET_ENDS_IN_CAPITALS) and part not in _NO_SECRETS)
        for part in re.split(r"[^A-Za-z0-9]+", spaced)
    )


def secret_finder() -> Callable[[str], str | None]:
    """What tells of a text which environment variable with a secret-looking name it is, or holds if that is long.

    The environment is read once, since this is asked of every value of every cell.
    """
    variables = _secret_variables()

    def find(text: str) -> str | None:
        for name, value in variables:
            if text == value or (len(value) >= _LONG and value in text):
                return name
        return None

    return find


def scrub(text: str) -> str:
    """`text` with every secret in it replaced by `***`."""
    return _scrubbed(text, _values_pattern(_secret_values()))


class Scrubber:
    """`scrub` for very many texts: the environment is read once, which takes half of the time of a short text."""

    def __init__(self) -> None:
        self._values = _values_pattern(_secret_values())

    def __call__(self, text: str) -> str:
        return _scrubbed(text, self._values)

    def knows(self, text: str) -> bool:
        """Whether the value of a variable with a secret-looking name stands in the text."""
        return self._values is not None and self._values.search(text) is not None


def _scrubbed(text: str, values: re.Pattern | None) -> str:
    if values is not None:
        text = values.sub(MASK, text)
    # All shapes that may be there in one pass: what one of them masks could hide the end of another.
    begun = tuple(shape for starts, shape in _SHAPES if any(start in text for start in starts))
    if begun:
        text = _one_of(begun).sub(MASK, text)
    if "://" in text:
        text = _URL.sub(rf"\g<scheme>{MASK}@", text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    return _ASSIGNED.sub(_mask_assigned, text)


@lru_cache(maxsize=64)
def _one_of(shapes: tuple[str, ...]) -> re.Pattern:
    return re.compile("|".join(shapes))


def _mask_assigned(found: re.Match) -> str:
    name, sign, value = found["name"], found["sign"], found["value"]
    if not looks_secret(name) or MASK in value or value in ("Bearer", "Basic") or name.endswith(_NO_NAMES):
        return found[0]
    bare = re.fullmatch(r"[a-z]+", name) is not None
    # `key=len` in a line of code and `token: 17` in a message are no secrets; `api_key: ...` and `password=...` are.
    harmless = name.lower() in ("key", "token", "auth", "pass") and not _random_looking(value.strip("\"'"))
    if harmless or (bare and ":" in sign and not _random_looking(value.strip("\"'"))):
        return found[0]
    return f"{name}{sign}{MASK}"


def _random_looking(value: str) -> bool:
    return len(value) >= 12 and any(c.isdigit() for c in value) and any(c.isalpha() for c in value)


def scrub_words(words: list[str]) -> list[str]:
    """A command line's words: whatever a secret-looking name is given goes, in `a.key=x`, `--key=x` and `--key x`."""
    clean, hide_next = [], False
    for word in words:
        name, equals, value = word.partition("=")
        if hide_next and not word.startswith("--"):
            clean.append(MASK)
        elif equals and re.fullmatch(r"[\w.\-+~/@]+", name) and looks_secret(name) and value:
            clean.append(f"{name}={MASK}")
        else:
            clean.append(scrub(word))
        hide_next = not equals and word.startswith("--") and looks_secret(word)
    return clean


def scrub_tree(value):
    """Nested dicts and lists with `scrub` applied to every text; a text under a secret-looking name goes whole."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {
            k: MASK if isinstance(v, str) and v and isinstance(k, str) and looks_secret(k) else scrub_tree(v)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [scrub_tree(v) for v in value]
    return value


def safe_environment() -> dict[str, str]:
    """The environment variables worth recording, without any that look like a secret."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if _ENVIRONMENT.fullmatch(name) and not looks_secret(name) and scrub(value) == value
    }


class ScrubbedStream:
    """A text stream that writes what it is given through `scrub`; everything else is the stream's own."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(scrub(text))
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def guard_output() -> None:
    """From now on nothing secret leaves this process through print, tracebacks or warnings: for logs on disk."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, ScrubbedStream):
            setattr(sys, name, ScrubbedStream(stream))


def _secret_values() -> tuple[str, ...]:
    """Values of secret-looking environment variables, longest first, so that a part never hides the whole."""
    found = set()
    for _name, part in _secret_variables():
        found |= {part, quote(part, safe=""), repr(part)[1:-1]}
    return tuple(sorted(found, key=lambda part: (-len(part), part)))


def _secret_variables() -> tuple[tuple[str, str], ...]:
    """(name, value) of the environment's secrets; of a value of several lines also each long line."""
    return _secrets_among(tuple(os.environ.items()))


@lru_cache(maxsize=4)  # the environment hardly ever changes
def _secrets_among(variables: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    found = []
    for name, value in variables:
        if name == "PWD":
            continue  # the shell's working directory
        if not looks_secret(name) or name.upper().endswith(("_SOCK", "_FILE", "_PATH", "_DIR")):
            # Where a secret lies is no secret. An address may hold one: DATABASE_URL, http_proxy.
            parts = [match["password"] for match in _URL_PASSWORD.finditer(value)] if "://" in value else []
        else:
            lines = value.splitlines() if "\n" in value else []
            parts = [value.strip(), *(line.strip() for line in lines if len(line.strip()) >= 16)]
        found += [(name, part) for part in parts if len(part) >= _SHORTEST]
    return tuple(found)


@lru_cache(maxsize=4)
def _values_pattern(values: tuple[str, ...]) -> re.Pattern | None:
    return re.compile("|".join(re.escape(value) for value in values)) if values else None
