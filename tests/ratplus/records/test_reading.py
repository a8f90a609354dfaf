"""Files of others: what is no plain file, too large or too deep is told in one line, and nothing waits or follows."""

import errno
import os
import tracemalloc

import pytest

from ratplus.records.atomic import write_atomically
from ratplus.records.reading import (
    LinkError,
    open_own,
    parse_json,
    read_bytes,
    read_json,
    read_lines,
    refuse_links,
)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 5_000 + "1" + "}" * 5_000, "[" * 65 + "]" * 65])
def test_deep_json_is_a_value_error(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError):
        read_json(tmp_path / "x.json")


def test_what_is_nested_less_is_read():
    value = parse_json("[" * 62 + '{"a": {"b": 1}}' + "]" * 62)
    for _ in range(62):
        (value,) = value
    assert value == {"a": {"b": 1}}


def test_a_pipe_does_not_hold_the_reader(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a plain file"):
        read_bytes(tmp_path / "pipe")
    with pytest.raises(OSError):
        open_own(tmp_path / "pipe", append=True)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)


def test_more_than_the_limit_is_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes(path, most=5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes, of which at most 4"):
        read_bytes(path, most=4)
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_bytes("/proc/self/status", most=4)  # the system says that it has none


def test_links_are_followed_only_when_asked_to(tmp_path):
    (tmp_path / "precious").write_text("[1]")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "precious")
    assert read_json(link) == [1]
    with pytest.raises(OSError, match="is a link") as refused:
        read_json(link, follow=False)
    assert refused.value.errno == errno.ELOOP
    for append in (True, False):
        with pytest.raises(OSError, match="is a link"):
            open_own(link, append)
    assert (tmp_path / "precious").read_text() == "[1]"


def test_files_of_ours_are_written_and_extended(tmp_path):
    for append, text in ((False, "one\n"), (True, "two\n")):
        with open_own(tmp_path / "log", append) as file:
            file.write(text)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    with open_own(tmp_path / "log", append=False) as file:
        file.write("x")
    assert (tmp_path / "log").read_text() == "x"


@pytest.mark.parametrize("place", ["report", "logs/a.log", "evaluate/0123456789ab"])
def test_a_link_within_a_folder_is_named(tmp_path, place):
    (tmp_path / "sweep" / "logs").mkdir(parents=True)
    (tmp_path / "sweep" / "evaluate" / "ba9876543210").mkdir(parents=True)
    refuse_links(tmp_path / "sweep", ("logs", "evaluate", "absent"))
    (tmp_path / "sweep" / place).symlink_to(tmp_path)
    with pytest.raises(LinkError, match=place):
        refuse_links(tmp_path / "sweep", ("logs", "evaluate", "absent"))
    (tmp_path / "alias").symlink_to(tmp_path / "sweep" / "evaluate" / "ba9876543210")
    refuse_links(tmp_path / "alias", ())  # the folder itself is the user's to name


def test_no_more_memory_is_asked_for_than_a_file_has(tmp_path):
    """Where address space is limited (`ulimit -v`), a reader that asks for its limit gets none at all."""
    (tmp_path / "x").write_bytes(b"[1]")
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "x", most=1 << 40) == b"[1]"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert len(read_bytes("/proc/self/status")) > 100  # which says that it has none


def test_lines_one_at_a_time(tmp_path):
    (tmp_path / "x").write_bytes(b"1\n22\n333")
    assert list(read_lines(tmp_path / "x", 3)) == [b"1\n", b"22\n", b"333"]
    with pytest.raises(ValueError, match="a line of more than 2 bytes"):
        list(read_lines(tmp_path / "x", 2))


@pytest.mark.parametrize("number", [10**19, -(10**19), 1 << 63, "9" * 3000, "9" * 100_000])
def test_numbers_that_nobody_can_calculate_with(number):
    with pytest.raises(ValueError):
        parse_json(f'{{"a": {number}}}')
    assert parse_json(f"[{(1 << 63) - 1}, {-(1 << 63) + 1}, 1e5]") == [(1 << 63) - 1, -(1 << 63) + 1, 1e5]
    assert parse_json(f"[{10**19}]", any_number=True) == [10**19]


@pytest.mark.parametrize("half", ["\\ud800", "\\uDFFF", "\\udce9"])
def test_halves_of_surrogate_pairs_become_their_codes(tmp_path, half):
    """They come of file names that are no UTF-8, and no file, table or page can hold them."""
    (tmp_path / "x").write_text(f'{{"a{half}": ["b{half}", 1], "c": "\\ud83d\\ude00"}}')
    code = half.lower()
    assert read_json(tmp_path / "x") == {f"a{code}": [f"b{code}", 1], "c": "\U0001f600"}
    write_atomically(tmp_path / "y", "a\udce9")
    assert (tmp_path / "y").read_text() == "a\\udce9"
    (tmp_path / "x").write_bytes(b'"\xed\xa0\x80"')  # a half as three bytes is no UTF-8
    with pytest.raises(ValueError):
        read_json(tmp_path / "x")


def test_a_file_with_a_second_name_is_not_written_to(tmp_path):
    (tmp_path / "precious").write_text("mine")
    os.link(tmp_path / "precious", tmp_path / "log")
    for append in (True, False):
        with pytest.raises(OSError, match="has another name too"):
            open_own(tmp_path / "log", append)
    assert (tmp_path / "precious").read_text() == "mine"
