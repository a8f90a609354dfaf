"""What a worker writes into its log of a failure, and the code that it ends with."""

import pytest

from ratplus.checkpoint.facts import CheckpointError
from ratplus.data.corpus import CorpusError
from ratplus.sweeps.launch import cell
from ratplus.training.errors import Diverged, Interrupted, LayoutError

SECRET = "abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("error", "code", "traced"),
    [
        (CheckpointError("no model"), cell.EXIT_USAGE, False), (CorpusError("no text"), cell.EXIT_USAGE, False),
        (LayoutError("ranks"), cell.EXIT_USAGE, False), (Diverged("NaN"), cell.EXIT_FAILED, False),
        (OSError(28, "No space left on device"), cell.EXIT_FAILED, False), (ValueError("odd"), cell.EXIT_FAILED, True),
        (RuntimeError(f"token={SECRET}"), cell.EXIT_FAILED, True), (PermissionError(13, "no"), cell.EXIT_FAILED, False),
    ],
)  # fmt: skip
def test_a_failure_in_a_log(monkeypatch, capsys, error, code, traced):
    """The last line says what failed; where that is not enough, the trace stands before it; no secret in either."""
    monkeypatch.setenv("MY_TOKEN", SECRET)
    lines = []

    def work():
        raise error

    assert cell._exit_code(work, lines.append, lambda error: cell._log_failure(error, lines.append)) == code
    assert lines == [f"{type(error).__name__}: {error}".replace(SECRET, "***")]
    said = capsys.readouterr().err
    assert ("Traceback (most recent call last)" in said) is traced
    assert ("raise error" in said) is traced
    assert SECRET not in said


@pytest.mark.parametrize(("number", "code"), [(15, 143), (2, 130)])
def test_an_interruption_is_told_and_is_no_failure(number, code):
    lines, failed = [], []

    def work():
        raise Interrupted(number)

    assert cell._exit_code(work, lines.append, failed.append) == code
    assert lines == [str(Interrupted(number))]
    assert failed == []


def test_work_that_is_done():
    assert cell._exit_code(lambda: None, pytest.fail, pytest.fail) == 0


def test_other_ids_than_planned_are_not_run():
    from types import SimpleNamespace

    stages = [SimpleNamespace(name="pretrain", id="a"), SimpleNamespace(name="adapt", id="b")]
    cell._check_planned(stages, {"pretrain": "a", "adapt": "b", "evaluate": "c"})
    with pytest.raises(CorpusError, match=r"^adapt: its id is b here, and was x when the sweep was planned: "):
        cell._check_planned(stages, {"pretrain": "a", "adapt": "x"})
    with pytest.raises(CorpusError, match=r"^adapt: its id is b here, and was None when"):
        cell._check_planned(stages, {"pretrain": "a"})
