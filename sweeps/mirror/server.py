"""A W&B server as seen from here: whether there is a key, whether it answers, and which runs it has."""

from __future__ import annotations

import netrc
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ratplus.records.secrets import scrub
from ratplus.sweeps.define.mistakes import UsageError

_SECONDS = 15.0
_AT_ONCE = 50


@dataclass
class Server:
    """`url` without a trailing slash; `key` is never shown."""

    url: str
    key: str = field(repr=False)

    def target(self, entity: str | None, project: str) -> str:
        """Name of a project there, as the ledger of what was pushed knows it; `-` is the account's own entity."""
        return target_name(self.url, entity, project)

    def check(self) -> None:
        """Make sure that the server answers and takes the key.

        Raises:
            UsageError: it does not; the line says what to do.
        """
        if self._ask("query Viewer { viewer { id } }", {}).get("viewer") is None:
            raise UsageError(f"{self.url}: the server does not take the W&B API key; run `wandb login --relogin`")

    def entity(self) -> str:
        """The account's own entity."""
        viewer = self._ask("query Viewer { viewer { entity } }", {}).get("viewer") or {}
        if not viewer.get("entity"):
            raise UsageError(f"{self.url}: the account has no entity of its own; give one with --entity")
        return viewer["entity"]

    def existing(self, entity: str | None, project: str, ids: list[str]) -> set[str]:
        """Which of these runs the server has."""
        found = set()
        for start in range(0, len(ids), _AT_ONCE):
            part = ids[start : start + _AT_ONCE]
            fields = " ".join(
                f'r{i}: bucket(name: "{name}", missingOk: true) {{ name }}' for i, name in enumerate(part)
            )
            query = (
                "query Runs($project: String!, $entity: String) "
                f"{{ model(name: $project, entityName: $entity) {{ {fields} }} }}"
            )
            model = self._ask(query, {"project": project, "entity": entity}).get("model") or {}
            found |= {node["name"] for node in model.values() if isinstance(node, dict) and "name" in node}
        return found

    def _ask(self, query: str, variables: dict) -> dict:
        import requests

        try:
            answer = requests.post(
                f"{self.url}/graphql", json={"query": query, "variables": variables}, auth=("api", self.key),
                timeout=_SECONDS,
            )  # fmt: skip
            if answer.status_code in (401, 403):
                raise UsageError(f"{self.url}: the server does not take the W&B API key; run `wandb login --relogin`")
            answer.raise_for_status()
            body = answer.json()
            if body.get("errors"):
                raise UsageError(f"{self.url}: {scrub(str(body['errors'][0].get('message')))}")
            return body.get("data") or {}
        except (requests.RequestException, AttributeError, LookupError) as error:
            reason = type(error).__name__ if isinstance(error, requests.RequestException) else "not a W&B server"
            raise UsageError(
                f"{self.url}: cannot be reached ({reason}); check the network and WANDB_BASE_URL, or rebuild the runs "
                "locally with --offline"
            ) from None


def server_url() -> str:
    """Of WANDB_BASE_URL or `wandb login --host`, or W&B's own."""
    from ratplus.sweeps.mirror.write import library

    inherited = "WANDB_SERVICE" in os.environ
    url = library().setup().settings.base_url.rstrip("/")
    if not inherited:
        # W&B's helper process is this process's own: workers, perhaps on other machines, start theirs.
        os.environ.pop("WANDB_SERVICE", None)
    return url


def target_name(url: str, entity: str | None, project: str) -> str:
    return f"{url}/{entity or '-'}/{project}"


def find_server() -> Server:
    """The server that W&B is set up for, with its key, checked.

    Raises:
        UsageError: no key, no answer, or a key that it does not take. Never asks for one.
    """
    server = Server(*find_key())
    server.check()
    return server


def find_key() -> tuple[str, str]:
    """The server's URL and the key for it, from where `wandb login` keeps them; without any network.

    Raises:
        UsageError: there is no key.
    """
    url = server_url()
    key = os.environ.get("WANDB_API_KEY") or _netrc_key(urlsplit(url).hostname or "")
    if not key:
        raise UsageError(
            f"no W&B API key for {url}: set WANDB_API_KEY or run `wandb login`; without an account, "
            "`ratplus sync --offline` rebuilds the runs locally and --dry-run lists them"
        )
    return url, key


def _netrc_key(host: str) -> str | None:
    """Where `wandb login` keeps it."""
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for name in names:
        try:
            found = netrc.netrc(Path(name).expanduser()).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if found:
            return found[2]
    return None
