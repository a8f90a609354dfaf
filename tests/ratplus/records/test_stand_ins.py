"""Files that stand where data should, and formats, by their first bytes."""

import pytest

from ratplus.records.stand_ins import HEAD_BYTES, format_of, head_of, stand_in, stand_in_file, wide_encoding


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"version https://hawser.github.com/spec/v1", "git lfs pull"),
        (b"\xef\xbb\xbf \nVERSION https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"/annex/objects/SHA", "git annex get"),
        (b"../.git/annex/objects", "git annex get"),
        (b".git/annex/objects", "git annex get"),
        (b"<!DOCTYPE html><p>", "web page (HTML)"),
        (b"\n <HTML>", "web page (HTML)"),
        (b"<head>", "web page (HTML)"),
        (b"<body>", "web page (HTML)"),
        (b"\xef\xbb\xbf<html>", "web page (HTML)"),
        (b'<?xml version="1.0"?><Error>Access', "error message of a server (XML)"),
        (b'<?xml version="1.0"?><html', "error message of a server (XML)"),
        (b'<?xml version="1.0"?><book>', ""),
        (b"in this <error> and <html> are words", ""),
        (b"version 1", ""),
        (b"a <html>", ""),
        (b"", ""),
    ],
)
def test_what_stands_in_for_data(tmp_path, head, word):
    assert word in stand_in(head)
    assert bool(word) == bool(stand_in(head))
    (tmp_path / "a").write_bytes(head + b"\n" * 600)
    assert stand_in_file(tmp_path / "a") == stand_in(head)


def test_the_head_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * HEAD_BYTES + b"y")
    assert head_of(tmp_path / "a") == b"x" * 512
    assert head_of(tmp_path / "gone") == head_of(tmp_path) == b""
    assert stand_in_file(tmp_path / "gone") == ""


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x1f\x8b\x08", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x50\x2a\x4d\x18", "zstd"), (b"BZh9", "bzip2"),
        (b"\x5f\x2a\x4d\x18", "zstd"), (b"\x4f\x2a\x4d\x18", ""), (b"\x60\x2a\x4d\x18", ""), (b"PK\x03\x04", "zip"),
        (b"\xfd7zXZ\x00", "xz"), (b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"PK", ""), (b"", ""), (b"text", ""),
        (b"aPAR1", ""),
    ],
)  # fmt: skip
def test_formats(head, name):
    assert format_of(head) == name


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ("a".encode("utf-16"), "UTF-16"), (b"\xfe\xff\x00a", "UTF-16"), ("a".encode("utf-32"), "UTF-32"),
        (b"\x00\x00\xfe\xff", "UTF-32"), (b"\xff\xfe\x00a", "UTF-16"), (b"a\xff\xfe", ""), (b"\xef\xbb\xbfa", ""),
        (b"", ""),
    ],
)  # fmt: skip
def test_wide_encodings(head, name):
    assert wide_encoding(head) == name
