"""What is kept of files that were read: within its bound, and the least recently used goes first."""

import os

import numpy as np

from ratplus.analysis.frame.curves import curve_of
from ratplus.analysis.frame.kept import Kept, stamp_of


def test_the_files_used_longest_ago_are_forgotten_first():
    kept: Kept[str] = Kept(10, len)
    for name in "abc":
        kept.add(name, (1,), name * 3)
    assert kept.get("a", (1,)) == "aaa"
    kept.add("d", (1,), "dddd")  # 13 bytes would be too many
    assert [kept.get(name, (1,)) for name in "abcd"] == ["aaa", None, "ccc", "dddd"]
    assert kept.get("a", (2,)) is None, "a file that was written since"


def test_a_file_that_was_read_again_takes_its_place_once():
    kept: Kept[str] = Kept(10, len)
    for stamp in range(5):
        kept.add("a", (stamp,), "aaaa")
    kept.add("b", (0,), "b" * 6)
    assert kept.get("a", (4,)) == "aaaa", "exactly what has room stays"
    assert kept.get("b", (0,)) == "b" * 6
    kept.add("c", (0,), "c" * 11)
    assert [kept.get(name, (stamp,)) for name, stamp in (("a", 4), ("b", 0), ("c", 0))] == [None] * 3


def test_a_stamp_tells_a_file_from_one_in_its_place(tmp_path):
    path = tmp_path / "x"
    assert stamp_of(str(path)) == ()
    path.write_text("1")
    before = stamp_of(str(path))
    assert stamp_of(str(path)) == before
    other = tmp_path / "y"
    other.write_text("2")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)  # of the same size and time
    assert stamp_of(str(path)) != before


def test_a_curve_is_read_again_if_it_grew_or_if_fewer_rows_are_wanted(tmp_path):
    curve = tmp_path / "curve.csv"
    told: list[str] = []

    def rows(most: int) -> list[float]:
        return list(curve_of(tmp_path, most, told.append).get("loss", ()))

    assert rows(10) == []
    curve.write_text("step,tokens,loss\n" + "".join(f"{i},{i},{i}.5\n" for i in range(1, 5)))
    assert rows(4) == [1.5, 2.5, 3.5, 4.5]
    assert told == []
    assert len(rows(2)) < 4
    assert len(told) == 1
    assert np.array_equal(rows(10), [1.5, 2.5, 3.5, 4.5])
    curve.write_text(curve.read_text() + "5,5,9.5\n")
    assert rows(10)[-1] == 9.5
