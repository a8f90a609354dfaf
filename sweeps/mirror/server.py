"""A W&B server as seen from here: whether there is a key for it, whether it answers, and which runs it has."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ratplus.records.secrets import scrub
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.mirror.write import library

if TYPE_CHECKING:
    import wandb

_SECONDS = 15
# Runs asked about in one request.
_AT_ONCE = 50
# W&B raises one kind of error for a key that the server refuses, one that cannot be a key, and a server without answer.
_REFUSED = re.compile(r"error 40[13]\b|invalid credentials")
_MALFORMED = re.compile(r"API key (must|may|is)\b")
_NO_ANSWER = re.compile(r"did not respond in time|timed? ?out", re.IGNORECASE)


class Server:
    """A server that has answered and taken the key.

    Args:
        api: W&B's public client of the server.
        url: the server's address, without a trailing slash.
    """

    def __init__(self, api: wandb.Api, url: str):
        self._api = api
        self.url = url

    def target(self, entity: str | None, project: str) -> str:
        """Name of a project there, as the ledger of what was sent knows it; `-` is the account's own entity."""
        return target_name(self.url, entity, project)

    def entity(self) -> str:
        """The account's own entity.

        Raises:
            UsageError: the account has none, or the server does not answer.
        """
        with _one_line_errors(self.url):
            found = self._api.default_entity
        if not found:
            raise UsageError(f"{self.url}: the account has no entity of its own; give one with --entity")
        return found

    def existing(self, entity: str | None, project: str, ids: list[str]) -> set[str]:
        """Ask which of these runs the server has; none if it has no such project.

        Raises:
            UsageError: the server does not answer.
        """
        path = f"{entity or self.entity()}/{project}"
        found: set[str] = set()
        for start in range(0, len(ids), _AT_ONCE):
            names = {"name": {"$in": ids[start : start + _AT_ONCE]}}
            with _one_line_errors(self.url):
                try:
                    found |= {run.id for run in self._api.runs(path, filters=names, per_page=_AT_ONCE)}
                except ValueError as error:
                    if "Could not find project" not in str(error):
                        raise
                    return set()
        return found


def find_server() -> Server:
    """The server that W&B is set up for, once it has answered and taken the key.

    Raises:
        UsageError: no key, no answer, or a key that the server does not take. Never asks for one.
    """
    check_key()  # on a terminal, W&B's client would ask for a key that is missing
    url = server_url()
    with _own_service(), _one_line_errors(url):
        return Server(library().Api(overrides={"base_url": url}, timeout=_SECONDS), url)


def check_key() -> None:
    """Make sure that this machine has a key for the server; asks neither the network nor the user.

    Raises:
        UsageError: there is no key, or what is there cannot be one.
    """
    url = server_url()
    with _own_service():
        # In W&B's offline mode, or beside a run that is open, `login` looks for no key and says that there is none.
        cannot_tell = library().setup().settings.mode in ("offline", "disabled") or library().run is not None
        with _one_line_errors(url):
            if not cannot_tell and not library().login(prompt=False, verify=False):
                raise _no_key(url)


def server_url() -> str:
    """The address in WANDB_BASE_URL or of `wandb login --host`, else W&B's own."""
    with _own_service():
        return library().setup().settings.base_url.rstrip("/")


def target_name(url: str, entity: str | None, project: str) -> str:
    """Name of a project on a server, as the ledger of what was sent knows it."""
    return f"{url}/{entity or '-'}/{project}"


@contextmanager
def _own_service() -> Generator[None]:
    """Keep W&B from making child processes share its helper process: workers may run on other machines."""
    inherited = "WANDB_SERVICE" in os.environ
    try:
        yield
    finally:
        if not inherited:
            os.environ.pop("WANDB_SERVICE", None)


@contextmanager
def _one_line_errors(url: str) -> Generator[None]:
    """Raise errors of W&B's client as a UsageError that says what to do."""
    from wandb.errors import AuthenticationError
    from wandb.errors import UsageError as SetupError

    try:
        yield
    except UsageError:
        raise
    except SetupError:
        raise _no_key(url) from None
    except Exception as error:  # W&B raises several kinds, some of them private to it
        reason = reason_of(error).removeprefix(f"Failed to verify credentials with {url}: ")
        if isinstance(error, AuthenticationError) and _REFUSED.search(reason):
            raise UsageError(f"{url}: the server does not take the W&B API key; run `wandb login --relogin`") from None
        if isinstance(error, AuthenticationError) and _MALFORMED.search(reason):
            raise UsageError(f"{reason.rstrip('.')}; set another one or run `wandb login --relogin`") from None
        if _NO_ANSWER.search(reason):
            reason = f"no answer within {_SECONDS} s"
        raise UsageError(
            f"{url}: cannot be reached ({reason}); check the network and WANDB_BASE_URL, or rebuild the runs "
            "locally with --offline"
        ) from None


def reason_of(error: Exception) -> str:
    """The text of an error in one line, with secrets masked; the name of its class if it has no text."""
    return scrub(" ".join(str(error).split())) or type(error).__name__


def _no_key(url: str) -> UsageError:
    return UsageError(
        f"no W&B API key for {url}: set WANDB_API_KEY or run `wandb login`; without an account, "
        "`ratplus sync --offline` rebuilds the runs locally and --dry-run lists them"
    )
