"""`ratplus bench`: its words, files, report and mistakes, in this process; what is measured is tested elsewhere."""

import json
from dataclasses import replace

import pytest

from ratplus.kernels.bench import cases as bench_cases
from ratplus.sweeps import cli

NANO = ["model", "ratplus_nano", "--context", "20", "--new-tokens", "3", "--repeats", "3", "--threads", "1",
        "--memory-gb", "1", "--device", "cpu"]  # fmt: skip


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """bench(*words) -> (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    small = replace(
        bench_cases.CPU_SHAPES, d_models=(32,), d_head=16, tokens=64, lengths=(64,), decode_batches=(2,),
        patterns=((1, 0, 0), (16, 0, 0)), scan_batches=(1,),
    )  # fmt: skip
    monkeypatch.setattr(bench_cases, "CPU_SHAPES", small)

    def run(*words):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["bench", *words])
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run


def test_kernels_with_a_file_and_a_report(bench, tmp_path):
    words = ["--device", "cpu", "--threads", "1", "--repeats", "3", "--json", "new/k.json", "--report", "rep"]
    code, out, err = bench("kernels", *words)
    assert code == 0
    assert "attention forward" in out
    assert "matmul_fraction" in out
    assert "decode B2 T64 d32 D16" in err  # the progress
    result = json.loads((tmp_path / "new" / "k.json").read_text())
    assert (result["benchmark"], result["complete"], result["threads"]) == ("kernels", True, 1)
    assert result["provenance"]["versions"]["torch"]
    assert {row["repeats"] for row in result["rows"]} == {3}
    assert (tmp_path / "rep" / "efficiency_kernels.md").exists()
    assert "rep/efficiency_kernels.png" in out


def test_without_a_word_it_is_the_kernels(bench):
    code, out, _ = bench("--device", "cpu", "--threads", "1", "--repeats", "3")
    assert code == 0
    assert out.splitlines()[0].startswith("op ")


def test_models_of_conf_and_named_patterns(bench, tmp_path):
    code, out, _ = bench(*NANO, "attention-1x32x16", "--pattern", "D16,hybrid_layers,heads[D1,D4]", "--json", "m.json",
                         "--report", ".")  # fmt: skip
    assert code == 0
    result = json.loads((tmp_path / "m.json").read_text())
    assert {row["model"]: row["recurrence"] for row in result["rows"]} == {
        "ratplus_nano": True, "attention-1x32x16": False,
    }  # fmt: skip
    patterns = [row["pattern"] for row in result["rows"] if row["model"] == "ratplus_nano"]
    assert patterns == ["D1", "D16", "layers[D1,D64]", "heads[D1,D4]"]
    assert (tmp_path / "efficiency_models.csv").exists()
    assert "tokens_per_second" in out


def test_training_steps_and_where_their_time_goes(bench, tmp_path):
    """A model with recurrence gets its attention-only peer; parts sum to the step; nothing stays patched."""
    from ratplus.bench.stopwatch import PARTS
    from ratplus.kernels import dilated_attention, gated_scan
    from ratplus.model import RATPlus
    from ratplus.model.network import gated_scan as used

    code, out, err = bench(
        "train", "ratplus_nano", "--context", "16", "--batch", "2", "--repeats", "1", "--budget", "0.01", "--threads",
        "1", "--device", "cpu", "--json", "t.json", "--report", ".",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads((tmp_path / "t.json").read_text())
    assert result["complete"]
    rows = {(row["model"], row["step"]): row for row in result["rows"]}
    peer = ("ratplus_nano without recurrence", "plain")
    assert list(rows) == [("ratplus_nano", "ARL"), ("ratplus_nano", "plain"), peer]
    for row in rows.values():
        assert sum(row[f"{part}_ms"] for part in PARTS) == pytest.approx(row["step_ms_p50"])
        assert all(row[f"{part}_ms"] > 0 for part in PARTS if part not in ("scan", "mixer"))
        assert (row["scan_ms"] > 0) == row["recurrence"]
        assert (row["tokens"], row["repeats"]) == (32, 3)
        assert 0 < row["mfu"] < 2
        assert row["peak_bytes"] == pytest.approx(row["estimated_bytes"], rel=0.5)
        assert (row["arl_cost"] is None) == (not row["recurrence"])
    assert rows["ratplus_nano", "ARL"]["arl_cost"] == pytest.approx(
        rows["ratplus_nano", "ARL"]["step_ms_p50"] / rows[peer]["step_ms_p50"]
    )
    assert "arl_cost" in out
    assert len((tmp_path / "efficiency_training.csv").read_text().splitlines()) == 4
    assert "| ratplus_nano | ARL |" in (tmp_path / "efficiency_training.md").read_text()
    assert used is gated_scan
    assert RATPlus.forward.__globals__["dilated_attention"] is dilated_attention


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kernel"], "bench kernel: no such benchmark; allowed: kernels, model, train, report"),
        (["model"], "bench model: give one or more models"),
        (["train", "ratplus_nanoo"], "model=ratplus_nanoo: no such choice; available: attention_"),
        (["train", "--batch", "max"], "--batch: got max; bench train takes whole numbers"),
        (["train", "--context", "1"], "--context: got 1; it must be ≥ 2"),
        (["train", "--pattern", "D16"], "--pattern: is for `ratplus bench model`, not train"),
        (["kernels", "ratplus_nano"], "bench kernels: takes no models, got ratplus_nano"),
        (["kernels", "--batch", "3"], "--batch: is for `ratplus bench model`"),
        (["kernels", "--cells", "0"], "--cells: is for `ratplus bench report`"),
        (["kernels", "--threads", "0"], "--threads: got 0; it must be ≥ 1"),
        (["kernels", "--repeats", "0"], "--repeats: got 0; it must be ≥ 1"),
        (["kernels", "--device", "tpu"], "--device: got 'tpu'; allowed: cpu, cuda"),
        (["model", "ratplus_nanoo"], "model=ratplus_nanoo: no such choice; available: attention_"),
        ([*NANO, "--pattern", "hybrid"], "pattern=hybrid: no such choice; available: dense"),
        ([*NANO, "--pattern", "D0"], "pattern.dilation: got 0"),
        ([*NANO, "--batch", "many"], "--batch: got 'many'; allowed: whole numbers separated by commas or max"),
        ([*NANO, "--vocab-size", "0"], "--vocab-size: got 0"),
        ([*NANO, "--json", "file/x.json"], "--json file/x.json: cannot be written"),
        ([*NANO, "--report", "file/x"], "--report file/x: cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(bench, tmp_path, words, message):
    (tmp_path / "file").write_text("")
    code, out, err = bench(*words)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
