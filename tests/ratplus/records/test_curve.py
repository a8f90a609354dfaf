"""curve.csv: read as numbers, whatever somebody wrote there, in bounded memory."""

import os
from itertools import pairwise

import pytest

from ratplus.records import curve
from ratplus.records.curve import StageLog, curve_rows

HEAD = "step,tokens,loss\n"


def rows(tmp_path, text: str) -> list:
    (tmp_path / "curve.csv").write_text(text)
    return [(row["step"], row["tokens"], row["loss"]) for row in curve_rows(tmp_path / "curve.csv")]


def test_rows_by_step_of_which_the_last_counts(tmp_path):
    assert rows(tmp_path, HEAD + "2,20,1.5\n1,10,2\n2,20,1.25\n3,30") == [(1, 10, 2), (2, 20, 1.25)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("step,loss\n1,2\n3,4\n", [{"step": 1, "loss": 2}, {"step": 3, "loss": 4}]),  # without a count of tokens
        ("step,loss\n3,4\n1,2\n", [{"step": 1, "loss": 2}, {"step": 3, "loss": 4}]),
        ("step,loss\n1,2\n1,3\n", [{"step": 1, "loss": 3}]),
        ("step,loss\n1,2\n3\n4,5\n", [{"step": 1, "loss": 2}, {"step": 4, "loss": 5}]),
        ("step,loss\n-1,2\n3,4\n", [{"step": 3, "loss": 4}]),
        ("loss,other\n1,2\n", []),
        ("step,loss\n", []),
    ],
)
def test_rows_of_any_columns(tmp_path, text, found):
    (tmp_path / "curve.csv").write_text(text)
    assert curve_rows(tmp_path / "curve.csv") == found


def test_what_is_no_count_is_left_out(tmp_path):
    text = HEAD + f"1,nan,1\n2,inf,1\n-3,1,1\n4,-1,1\nx,1,1\n5,{'9' * 400},1\n6,{'9' * 5000},1\n7,1e30,1\n8,1,nan\n"
    (found,) = rows(tmp_path, text)
    assert found[:2] == (8, 1)
    assert rows(tmp_path, HEAD + f"1,1,{'9' * 400}\n") == [(1, 1, float("inf"))]


@pytest.mark.parametrize(
    "text", ["", "1,2,3\n4,5,6\n", HEAD + '"' + "x" * 200_000, HEAD + "1," * 100_000, "\0" * 10, HEAD + "\xff\n"]
)
def test_what_is_no_curve_has_no_rows(tmp_path, text):
    (tmp_path / "curve.csv").write_bytes(text.encode("latin-1"))
    assert curve_rows(tmp_path / "curve.csv") == []


def test_a_pipe_or_a_link_has_no_rows(tmp_path):
    os.mkfifo(tmp_path / "curve.csv")
    assert curve_rows(tmp_path / "curve.csv") == []
    with pytest.raises(ValueError, match="not a curve"):
        StageLog(tmp_path).start(5)
    (tmp_path / "curve.csv").unlink()
    (tmp_path / "other.csv").write_text(HEAD + "1,1,1\n")
    (tmp_path / "curve.csv").symlink_to(tmp_path / "other.csv")
    assert curve_rows(tmp_path / "curve.csv") == []
    (tmp_path / "curve.csv").unlink()
    (tmp_path / "curve.csv").symlink_to("/dev/zero")
    assert curve_rows(tmp_path / "curve.csv") == []
    with pytest.raises(ValueError, match="is a link"):
        StageLog(tmp_path).start(5)


def test_of_a_very_long_curve_every_second_or_fourth_row(tmp_path, monkeypatch):
    monkeypatch.setattr(curve, "_PIECE", 7)  # rows that begin in one piece and end in another
    for count in (9, 10, 11, 25, 1000):
        text = HEAD + "".join(f"{n},{n},1\n" for n in range(1, count + 1))
        (tmp_path / "curve.csv").write_text(text[: -1 if count == 25 else None])
        told: list[str] = []
        steps = [row["step"] for row in curve_rows(tmp_path / "curve.csv", 10, told.append)]
        every = {9: 1, 10: 1, 11: 2, 25: 4, 1000: 128}[count]
        assert told == (
            [f"{tmp_path}/curve.csv: {count:,} rows, of which one in {every} is shown"] if every > 1 else []
        )
        assert len(steps) <= 12
        assert steps[1] - steps[0] == every
        assert steps[0] == 1
        assert steps[-1] == count
        gaps = {b - a for a, b in pairwise(steps[:-1])}
        assert len(gaps) == 1


def test_a_curve_goes_on_from_a_step(tmp_path):
    log = StageLog(tmp_path)
    log.start(0)
    for step in (1, 2, 3):
        log.write(step, {"tokens": step * 10, "loss": 1.0})
    with log.path.open("a") as file:
        file.write("4,40")  # cut short by a crash
    again = StageLog(tmp_path)
    again.start(2)
    again.write(3, {"tokens": 30, "loss": 0.5})
    assert log.path.read_text() == HEAD + "1,10,1.0\n2,20,1.0\n3,30,0.5\n"


@pytest.mark.parametrize("cut", ["3", "3,30", "3,30,", "3,30,1.0,7", ",,", "x,1,1"])
def test_a_row_that_is_cut_or_odd_is_not_kept(tmp_path, cut):
    """Also where the state that is continued is of a later step: not all that was written reached the disk."""
    log = StageLog(tmp_path)
    log.path.write_text(HEAD + f"1,10,1.0\n2,20,1.0\n{cut}")
    log.start(9)
    whole = "3,30,\n" if cut == "3,30," else ""  # as many fields as a row has: a loss that was not told
    assert log.path.read_text() == HEAD + "1,10,1.0\n2,20,1.0\n" + whole
