"""Text of strangers in job scripts, tables, terminals, commands:
shown, never obeyed; and files that would fill memory."""

import gzip
import json

import pandas as pd
import pytest

from ratplus.analysis.draw.tables import Table, to_csv, to_markdown
from ratplus.config.data import DataSection
from ratplus.config.run import LauncherSection
from ratplus.data.corpus import CorpusError
from ratplus.data.prepare import documents
from ratplus.data.prepare.inputs import list_inputs
from ratplus.records.lines import first_line, last_line, plain
from ratplus.sweeps.define.grid import expand
from ratplus.sweeps.define.mistakes import UsageError


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint"])
def test_a_line_break_becomes_no_line_of_the_job(key):
    with pytest.raises(ValueError, match=f"launcher.{key}: got .*line breaks are not allowed"):
        LauncherSection(kind="slurm", **{key: "gpu\ntouch pwned #"})


def test_options_of_sbatch_are_plain():
    LauncherSection(kind="slurm", sbatch={"mail-type": "END", "comment": "a b"})
    for odd in ({"comment": "x\ntouch pwned"}, {"comment=1\ntouch pwned #": 1}, {"a b": 1}):
        with pytest.raises(ValueError, match="launcher.sbatch"):
            LauncherSection(kind="slurm", sbatch=odd)


def test_cells_are_no_formulas_and_no_images():
    names = ["=HYPERLINK(1)", "+1", "-x", "@SUM(1)", "![x](https://evil.example/p.png)", "[x]: http://evil", "a[0]"]
    data = pd.DataFrame({"=name": names, "value": [-1.5] * len(names)})
    table = Table("t", data, data.astype(str))
    lines = to_csv(data).splitlines()
    assert lines[0] == "'=name,value"
    assert [line.split(",")[0] for line in lines[1:5]] == [f"'{name}" for name in names[:4]]
    assert lines[1].endswith(",-1.5")  # a number is one
    shown = to_markdown(table)
    assert "![x](" not in shown
    assert "[x]:" not in shown
    assert "a[0]" in shown


def test_a_terminal_obeys_nothing():
    text = "a\x1b]52;c;Y3\x07\x9b2J\u202eb"
    for shown in (plain(text), first_line(ValueError(text)), last_line(text)):
        assert shown.isprintable()
        assert shown.startswith("a\\x1b]52;c;Y3\\x07")
    assert plain("é 漢\n\tx") == "é 漢\n\tx"


def test_a_sweep_of_too_many_cells_is_refused_at_once():
    for spec in ({"seeds": 2_000_000_000}, {"grid": {f"k{i}": list(range(9)) for i in range(9)}}):
        with pytest.raises(UsageError, match=r"100.?000"):
            expand(spec, set(), set())


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_a_compressed_line_without_end_is_refused(tmp_path, packed):
    if packed == "gz":
        data = gzip.compress(b'{"text": "a"}\n' + b" " * (8 << 20))
    else:
        data = pytest.importorskip("zstandard").compress(b'{"text": "a"}\n' + b" " * (8 << 20))
    (tmp_path / f"a.jsonl.{packed}").write_bytes(data)
    (source,) = list_inputs(DataSection(source="files", path=str(tmp_path)))
    with pytest.raises(CorpusError, match=rf"a.jsonl.{packed}, line 2: longer than data.longest_mib=1 MiB"):
        list(documents.batches(source, "text", None, 1 << 20))


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_lines_without_end_are_refused_too(tmp_path, monkeypatch, packed):
    """Each line is short, but all together would fill the disk with tokens."""
    monkeypatch.setattr(documents, "SPARED", 1 << 20)
    lines = b'{"text": "a"}\n' * 300_000
    pack = gzip.compress if packed == "gz" else pytest.importorskip("zstandard").compress
    (tmp_path / f"a.jsonl.{packed}").write_bytes(pack(lines))
    (source,) = list_inputs(DataSection(source="files", path=str(tmp_path)))
    with pytest.raises(CorpusError, match=rf"a.jsonl.{packed}: unpacks to more than 200 times its size"):
        list(documents.batches(source, "text", None))
    assert documents.most_unpacked(source) < len(lines)


def test_long_lines_come_whole_out_of_zstd(tmp_path):
    """Lines are put together of many pieces."""
    zstandard = pytest.importorskip("zstandard")
    import random

    texts = ["".join(random.Random(n).choices("abcdefgh ", k=n)) for n in (1, 300_000, 0, 70_000, 5)]
    raw = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(raw[:200_000]) + zstandard.compress(raw[200_000:]))
    (source,) = list_inputs(DataSection(source="files", path=str(tmp_path)))
    found = [text for batch, _ in documents.batches(source, "text", None) for text in batch]
    assert found == [text for text in texts if text]
