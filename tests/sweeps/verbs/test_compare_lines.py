"""What `ratplus compare` prints of differences that are written by hand."""

import math

from ratplus.analysis.paired.bootstrap import BOOTSTRAP, ERRORS
from ratplus.sweeps.verbs.compare import _show


def row(metric: str, difference: float, p: float, certain: bool, **more) -> dict:
    return {
        "first": "D1", "second": "D4", "run": "m", "metric": metric, "unit": "", "a": 0.5, "b": 0.5 + difference,
        "difference": difference, "stderr": 0.0123, "low": difference - 0.02, "high": difference + 0.03, "p": p,
        "items": 32, "method": BOOTSTRAP, "seeds": 1, "seeds_stderr": math.nan, "certain": certain,
    } | more  # fmt: skip


def shown(capsys, *rows: dict) -> list[str]:
    _show(list(rows), ["a note"])
    return capsys.readouterr().out.splitlines()


def words(line: str) -> list[str]:
    return line.split()


def test_a_verdict_is_what_is_certain_whatever_p_is(capsys):
    lines = shown(
        capsys, row("loss", 0.1, 0.04, False), row("gain", 0.1, 0.04, True), row("fall", -0.1, 1e-5, True),
        row("recall_accuracy", 0.1, 1e-4, True, unit="%", items=0, method=ERRORS),
    )  # fmt: skip
    assert lines[0] == "D4 minus D1"
    assert " ".join(words(lines[2])) == "m loss 0.500 0.600 0.100 ± 0.012 0.080 to 0.130 0.0400 32 ="
    assert [words(line)[-1] for line in lines[2:6]] == ["=", "higher", "lower", "higher"]
    assert words(lines[4])[-3] == "<0.0001"
    share = "m recall_accuracy (%) 50.0 60.0 10.0 ± 1.2 8.0 to 13.0 0.0001 — higher"
    assert " ".join(words(lines[5])) == share
    assert "items —: no samples of the same items" in "\n".join(lines)
    assert "± seeds" not in "\n".join(lines)
    assert lines[-1] == "a note"


def test_seeds_are_shown_where_a_row_has_several(capsys):
    lines = shown(capsys, row("loss", 0.1, 0.04, True), row("gain", 0.1, 0.04, True, seeds=3, seeds_stderr=0.0567))
    assert words(lines[3])[-3:] == ["0.057", "3", "higher"]
    assert words(lines[2])[-3:] == ["—", "1", "higher"]
    assert not any(line.startswith("items —") for line in lines)
