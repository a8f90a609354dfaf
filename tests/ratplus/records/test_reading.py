"""Files of others: what is no plain file, too large or too deep is told in one line, and nothing waits or follows."""

import errno
import os

import pytest

from ratplus.records.reading import LinkError, open_own, parse_json, read_bytes, read_json, refuse_links


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 5_000 + "1" + "}" * 5_000, "[" * 65 + "]" * 65])
def test_deep_json_is_a_value_error(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError):
        read_json(tmp_path / "x.json")


def test_what_is_nested_less_is_read():
    value = parse_json("[" * 60 + '{"a": {"b": 1}}' + "]" * 60)
    for _ in range(60):
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
