"""`make gpu-check`, rehearsed on planted tests: the end of its output must say what failed, where and by how much."""

import os
import signal

import pytest
from gpu_check import main

PLANTED = """
import pytest
pytestmark = pytest.mark.gpu

def test_good(record_property):
    record_property("outputs: ours, plain bf16", "1.7e-03,1.6e-03")

def test_wrong_kernel(record_property):
    record_property("outputs: ours, plain bf16", "5.0e-01,1.6e-03")
    assert 0.5 <= 2 * 1.6e-3 + 1e-4, ("outputs", 0.5, 1.6e-3)
"""
SLOW = """
import time
import pytest
pytestmark = pytest.mark.gpu

def test_wrong_early():
    raise RuntimeError("why it failed")

def test_good_early():
    pass

def test_takes_long():
    time.sleep(600)
"""
DYING = """
import os
import pytest
pytestmark = pytest.mark.gpu

def test_dies():
    os.abort()
"""


def test_a_wrong_and_a_dying_kernel_are_named_at_the_end(tmp_path, capsys):
    files = {"test_planted.py": PLANTED, "test_dying.py": DYING}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code = main([str(tmp_path / "out"), *(str(tmp_path / name) for name in files)])
    out = capsys.readouterr().out[-12000:]
    assert code == 1
    assert "passed   0.0 s planted.py test_good outputs: ours, plain bf16: 1.7e-03,1.6e-03" in out
    assert "failed   0.0 s planted.py test_wrong_kernel outputs: ours, plain bf16: 5.0e-01,1.6e-03" in out
    assert "AssertionError: ('outputs', 0.5, 0.0016)" in out
    assert "alone, with launches that wait" in out
    *_, wrong, dying, count = out.splitlines()
    assert wrong.startswith("FAILED ")
    assert "test_planted.py::test_wrong_kernel: " in wrong
    assert "test_dying.py: pytest ended with code -" in dying
    assert count.startswith("1 passed, 2 failed, 0 skipped in ")
    assert "in test_dies" in out
    assert sorted(os.listdir(tmp_path / "out")) == ["test_dying.log", "test_planted.log", "test_planted.xml"]


@pytest.mark.slow  # it waits for its limit, which must be long enough for pytest to start on a busy machine
@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "workers"])
def test_what_failed_before_the_time_ran_out_is_told(workers, tmp_path, capsys, monkeypatch):
    if workers:
        pytest.importorskip("xdist")
    monkeypatch.setattr("gpu_check.SECONDS", 60)
    monkeypatch.setattr("gpu_check._workers", lambda: workers)
    monkeypatch.setattr("gpu_check._alone", lambda test: "")
    file = tmp_path / "test_slow.py"
    file.write_text(SLOW)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # so a shell starts what runs in the background
    try:
        assert main([str(tmp_path / "out"), str(file)]) == 1
    finally:
        signal.signal(signal.SIGINT, before)
    out = capsys.readouterr().out
    assert f"{file}: ran out of time" in out
    assert "test_slow.py::test_wrong_early: RuntimeError: why it failed" in out
    assert f"FAILED {file}: pytest ran out of time" in out
    assert "passed   0.0 s slow.py test_good_early" in out
    assert "slow.py test_takes_long" not in out
    assert out.splitlines()[-1].startswith("1 passed, 2 failed, 0 skipped")


def test_where_everything_is_skipped_the_check_has_not_passed(tmp_path, capsys):
    file = tmp_path / "test_nothing.py"
    file.write_text("import pytest\npytestmark = [pytest.mark.gpu, pytest.mark.skip]\ndef test_x(): pass\n")
    assert main([str(tmp_path / "out"), str(file)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 passed, 0 failed, 1 skipped")


@pytest.mark.parametrize("words", [[]])
def test_usage(words, capsys):
    assert main(words) == 2
    assert "usage: python tests/gpu_check.py FOLDER" in capsys.readouterr().err
