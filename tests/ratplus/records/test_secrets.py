"""Secrets: what must go, and what must stay readable."""

import io
import json
import subprocess
import time

import pytest

from ratplus.records.record import code_version, provenance, read_record, stage_id, write_record
from ratplus.records.secrets import ScrubbedStream, looks_secret, safe_environment, scrub, scrub_tree, scrub_words

KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("WANDB_API_KEY", True), ("HF_TOKEN", True), ("MY_SECRET", True), ("DB_PASSWORD", True), ("apiKey", True),
        ("--hf-token", True), ("logger.api_key", True), ("AWS_SECRET_ACCESS_KEY", True),
        ("data.recall.keys", False), ("tokenizer", False), ("TOKENIZERS_PARALLELISM", False), ("train.tokens", False),
        ("PGPASSWORD", True), ("SSHPASS", True), ("GITHUBTOKEN", True), ("MYSITE_SAS", True), ("MY_SITE_CREDS", True),
        ("monkey", False), ("SLURM_JOB_ID", False), ("BYPASS", False), ("compass", False), ("detokenize", False),
    ],
)  # fmt: skip
def test_names(name, secret):
    assert looks_secret(name) == secret


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"key {KEY} refused", "key *** refused"),
        ("clone https://user:pw@host.org/x.git failed", "clone https://***@host.org/x.git failed"),
        ("clone https://ghp_0123456789abcdefghij0123@host/x", "clone https://***@host/x"),
        ("GET /run?api_key=abc123&page=2", "GET /run?api_key=***&page=2"),
        ("https://x.blob/a?sv=1&sig=Ab%2Fcd&se=2 failed", "https://x.blob/a?sv=1&sig=***&se=2 failed"),
        ("postgres://me:p/w@x@db.org/d failed", "postgres://***@db.org/d failed"),
        ("http://me:p/w@proxy:8080 failed", "http://***@proxy:8080 failed"),
        ("password=hunter2, retry", "password=***, retry"),
        ("{'api_key': 'abc', 'lr': 1}", "{'api_key': ***, 'lr': 1}"),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer ***"),
        ("hf_abcdefghijklmnopqrstuvwx", "***"),
        ("sk-abcdefghijklmnopqrstuvwx", "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "***"),
        ("secret%20value%2Fquoted in a URL", "*** in a URL"),
    ],
)
def test_what_goes(text, clean, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MY_SECRET", "secret value/quoted")
    assert scrub(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "data.recall.keys=8 data.recall.pairs=4",
        "key 'model' is missing; token 17 of 512",
        "    rows = sorted(rows, key=len)",
        "KeyError: 'loss'",
        "commit 39b7fc2bc7ae619d588181611f1f2a26c2e18a48",
        "https://api.wandb.ai/graphql: no answer",
        "file:///work/x.py:17: ValueError",
        "user@host.org",
        "http://host:8080/mail/me@x.org: no answer",
        "pattern.dilation: got 0; it must be ≥ 1",
    ],
)
def test_what_stays(text):
    assert scrub(text) == text


def test_short_values_and_places_of_secrets_are_ordinary_words(monkeypatch):
    monkeypatch.setenv("SHORT_TOKEN", "on")
    monkeypatch.setenv("MY_TOKEN_FILE", "/run/token-file")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("PWD", "/home/me/work")  # the shell's, in nearly every environment
    assert scrub("outputs are in /home/me/work/outputs") == "outputs are in /home/me/work/outputs"
    monkeypatch.setenv("DB_PWD", "correct horse")
    assert scrub("the correct horse") == "the ***"
    assert scrub("turned on; see /run/token-file and /run/agent") == "turned on; see /run/token-file and /run/agent"


def test_command_lines():
    words = ["ratplus", "sweep", "logger.api_key=abc", "--key=abc", "--hf-token", "abc", "data.recall.keys=4", "-m"]
    assert scrub_words(words) == [
        "ratplus", "sweep", "logger.api_key=***", "--key=***", "--hf-token", "***", "data.recall.keys=4", "-m",
    ]  # fmt: skip


def test_a_value_hides_no_other_word_than_its_own():
    words = ["--api-key=abc", "train.steps=3", "--hf-token", "--json", "out", "--verbose", "yes"]
    assert scrub_words(words) == ["--api-key=***", "train.steps=3", "--hf-token", "--json", "out", "--verbose", "yes"]


def test_nested_values(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "correct horse")
    tree = {"a": ["correct horse", 1, None], "api_key": "x", "keys": 4, "b": {"token": ""}}
    assert scrub_tree(tree) == {"a": ["***", 1, None], "api_key": "***", "keys": 4, "b": {"token": ""}}


def test_environment_is_a_subset_without_secrets(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RATPLUS_NOTE", f"uses {KEY}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("NCCL_AUTH_TOKEN", "whatever")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("SOMETHING_ELSE", "x")
    found = safe_environment()
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["NCCL_DEBUG"] == "INFO"
    assert not {"RATPLUS_NOTE", "WANDB_API_KEY", "NCCL_AUTH_TOKEN", "SOMETHING_ELSE"} & set(found)


def test_streams(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "correct horse")
    out = io.StringIO()
    print("a correct horse", file=ScrubbedStream(out))
    assert out.getvalue() == "a ***\n"


def test_long_texts_take_no_time(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "correct horse")
    started = time.process_time()  # a quadratic search would take many minutes
    for text in ("a" * 300_000, "a-" * 150_000, "x=" * 150_000, "a:" * 100_000, "://" * 100_000):
        scrub(text)
    assert time.process_time() - started < 20


def test_records_hold_no_secret(tmp_path, monkeypatch):
    secret = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0\n-----END PRIVATE KEY-----"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("DEPLOY_KEY", secret)
    monkeypatch.setattr("sys.argv", ["/somewhere/ratplus", "sweep", f"data.path=https://u:{KEY}@host/x", "--key=abc"])
    error = {"type": "ValueError", "message": f"no {KEY}", "traceback": ["line", *secret.split("\n"), f"x = '{KEY}'"]}
    folder = tmp_path / stage_id("adapt", {"a": 1}, None)
    write_record(
        folder, stage="adapt", config={"a": 1}, parent=None, status="failed", metrics={}, timing={},
        provenance=provenance(kernels=KEY), error=error,
    )  # fmt: skip
    text = (folder / "record.json").read_text()
    assert KEY not in text
    assert "MIIE" not in text
    record = read_record(folder)
    assert record["provenance"]["command"] == ["ratplus", "sweep", "data.path=https://***@host/x", "--key=***"]
    assert record["error"] == {"type": "ValueError", "message": "no ***", "traceback": ["line", "***", "x = '***'"]}


@pytest.mark.parametrize("setting", ["core.fsmonitor", "diff.evil.textconv", "diff.external"])
def test_no_program_of_a_checkout_is_run_to_name_its_version(tmp_path, monkeypatch, setting):
    code, ran = tmp_path / "ratplus" / "records" / "record.py", tmp_path / "ran"
    code.parent.mkdir(parents=True)
    code.write_text("one\n")
    (tmp_path / ".gitattributes").write_text("*.py diff=evil\n")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch '{ran}'\n")
    program.chmod(0o755)
    commit = ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"]
    for words in (["init", "-q"], ["add", "."], commit, ["config", setting, str(program)]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    code.write_text("two\n")
    monkeypatch.setattr("ratplus.records.record.__file__", str(code))
    try:
        code_version.cache_clear()
        found = code_version()
        assert found is not None
        assert found["dirty"]
        assert not ran.exists()
        subprocess.run(["git", "diff"], cwd=tmp_path, capture_output=True, check=True)
        assert ran.exists(), "git itself does run it"
    finally:
        code_version.cache_clear()


def test_code_version_names_the_diff(tmp_path, monkeypatch):
    """In a repository of our own making that looks like a checkout of this project."""
    code = tmp_path / "ratplus" / "records" / "record.py"
    code.parent.mkdir(parents=True)
    code.write_text("one\n")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr("ratplus.records.record.__file__", str(code))
    monkeypatch.setenv("MY_SECRET", "correct horse")
    try:
        code_version.cache_clear()
        clean = code_version()
        assert clean == {"commit": clean["commit"], "dirty": False, "diff_sha256": None}
        code.write_text("two correct horse\n")
        code_version.cache_clear()
        facts = json.loads(json.dumps(provenance(save_diff_in=tmp_path / "sweep")))["git"]
        diff = subprocess.run(["git", "diff", "HEAD"], cwd=tmp_path, check=True, capture_output=True).stdout
        import hashlib

        assert facts["dirty"]
        assert facts["diff_sha256"] == hashlib.sha256(diff).hexdigest()
        (kept,) = (tmp_path / "sweep" / "provenance").iterdir()
        assert kept.name == f"{facts['diff_sha256']}.diff"
        assert "+two ***\n" in kept.read_text()
        provenance()
        assert len(list((tmp_path / "sweep" / "provenance").iterdir())) == 1
    finally:
        code_version.cache_clear()


def test_the_password_of_an_address_is_known_alone_too(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgres://me:correct-horse@db.org/d")
    assert scrub("login with correct-horse failed") == "login with *** failed"


HOSTILE = {
    "tokens": lambda n: "eyJ-" * n, "assignments": lambda n: "a=" * n, "spaces": lambda n: ("a" + " " * 50) * (n // 10),
    "one name": lambda n: "token" + " " * n * 4, "begin": lambda n: "-----BEGIN A" * n, "schemes": lambda n: "a://" * n,
    "end": lambda n: "-----BEGIN PRIVATE KEY-----" + "-----END A" * n, "colons": lambda n: "http://" + "a:" * n,
    "addresses": lambda n: "a://b:" * n, "quotes": lambda n: "token='" * n, "tabs": lambda n: "token:" + "\t\n" * n,
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_masking_takes_time_in_proportion_to_the_length(kind):
    """Four times the length takes four times as long, and would take sixteen times as long if it were its square."""

    def seconds(count: int) -> float:
        text, times = HOSTILE[kind](count), []
        for _ in range(3):
            begun = time.process_time()
            scrub(text)
            times.append(time.process_time() - begun)
        return min(times)

    assert seconds(16_000) < 10 * seconds(4_000) + 0.05
