"""A W&B server as `ratplus` sees it, through W&B's public client; the client is a stand-in, and no server is asked."""

import re

import pytest
from wandb.errors import AuthenticationError, CommError
from wandb.errors import UsageError as SetupError

from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.mirror import server

URL = "https://wandb.example"


class StandIn:
    """W&B's public client of a server that has some runs."""

    def __init__(self, runs=(), entity="me", error=None):
        self.names, self._entity, self._error = set(runs), entity, error
        self.asked: list[tuple[str, list[str]]] = []

    @property
    def default_entity(self):
        if self._error:
            raise self._error
        return self._entity

    def runs(self, path, filters, per_page):
        if self._error:
            raise self._error
        wanted = filters["name"]["$in"]
        assert len(wanted) <= per_page
        self.asked.append((path, wanted))
        return [type("Run", (), {"id": name}) for name in wanted if name in self.names]


def test_runs_are_asked_for_in_parts_and_under_their_entity():
    api = StandIn(runs=[f"run{i}" for i in range(0, 120, 2)])
    asked = [f"run{i}" for i in range(120)]
    assert server.Server(api, URL).existing("team", "p", asked) == api.names
    assert [path for path, _ in api.asked] == ["team/p"] * 3
    assert [name for _, part in api.asked for name in part] == asked
    server.Server(api, URL).existing(None, "p", ["run1"])
    assert api.asked[-1] == ("me/p", ["run1"])
    assert server.Server(api, URL).existing(None, "p", []) == set()


def test_a_project_that_is_not_there_has_no_runs_and_another_mistake_is_told():
    missing = server.Server(StandIn(error=ValueError("Could not find project p")), URL)
    assert missing.existing("team", "p", ["a"]) == set()
    broken = server.Server(StandIn(error=ValueError("no such filter")), URL)
    with pytest.raises(UsageError, match=re.escape(f"{URL}: cannot be reached (no such filter)")):
        broken.existing("team", "p", ["a"])


def test_an_account_without_an_entity_is_asked_for_one():
    with pytest.raises(UsageError, match="the account has no entity of its own; give one with --entity"):
        server.Server(StandIn(entity=None), URL).entity()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SetupError("No API key configured."), f"no W&B API key for {URL}: set WANDB_API_KEY or run `wandb login`"),
        (AuthenticationError(f"Failed to verify credentials with {URL}: returned error 401: {{}}"),
         f"{URL}: the server does not take the W&B API key; run `wandb login --relogin`"),
        (AuthenticationError(f"Failed to verify credentials with {URL}: invalid credentials: no account"),
         f"{URL}: the server does not take the W&B API key; run `wandb login --relogin`"),
        (AuthenticationError("WANDB_API_KEY invalid: API key must have 40+ characters, has 5."),
         "WANDB_API_KEY invalid: API key must have 40+ characters, has 5; set another one or run `wandb login"),
        (AuthenticationError("the service process is busy and did not respond in time."),
         f"{URL}: cannot be reached (no answer within 15 s); check the network and WANDB_BASE_URL"),
        (CommError("HTTP 502:\n bad gateway"), f"{URL}: cannot be reached (HTTP 502: bad gateway)"),
        (RuntimeError(), f"{URL}: cannot be reached (RuntimeError)"),
    ],
)  # fmt: skip
def test_each_failure_is_one_line_that_says_what_to_do(error, line):
    with pytest.raises(UsageError) as told:
        server.Server(StandIn(error=error), URL).existing("team", "p", ["a"])
    assert str(told.value).startswith(line)
    assert "\n" not in str(told.value)


def test_a_key_is_looked_for_without_asking_anybody(monkeypatch):
    import wandb

    asked = []

    def login(**options):
        asked.append(options)
        return found

    monkeypatch.setattr(wandb, "login", login)
    monkeypatch.setattr(wandb.setup().settings, "mode", "online")
    for found in (True, False):
        if found:
            server.check_key()
        else:
            with pytest.raises(UsageError, match="no W&B API key for"):
                server.check_key()
    assert asked == [{"prompt": False, "verify": False}] * 2
    monkeypatch.setattr(wandb, "run", "a run that is open")  # beside one, W&B does not look for a key
    server.check_key()
    assert len(asked) == 2


def test_a_key_that_cannot_be_one_is_a_mistake_in_one_line(monkeypatch):
    import wandb

    def login(**_options):
        raise AuthenticationError("WANDB_API_KEY invalid: API key must have 40+ characters, has 5.")

    monkeypatch.setattr(wandb, "login", login)
    monkeypatch.setattr(wandb.setup().settings, "mode", "online")
    with pytest.raises(UsageError, match="has 5; set another one"):
        server.check_key()
