"""The whole report and its headline."""

import subprocess
import sys

import pytest

from ratplus.analysis.frame.load import load_sweep
from ratplus.analysis.report import headline, report
from ratplus.pattern import Pattern


def test_report_writes_what_applies(everything, reported):
    assert {path.name for path in reported} >= {"accuracy_vs_dilation.csv", "accuracy_vs_dilation.pdf"}
    assert all(path.parent == everything / "report" and path.exists() for path in reported)


def test_headline_of_the_demo(demo):
    assert headline(load_sweep(demo)) == (
        "At D=64 RAT+ (ratplus_tiny) loses 0.01 nats against its dense self; attention_tiny loses 0.82. "
        "Recall accuracy there: RAT+ (ratplus_tiny) 52%, attention_tiny 14%. "
        "The pattern keeps 8 of 512 cache entries a head and 1.8% of the attention FLOPs."
    )


def test_headline_takes_the_largest_dilation_that_has_a_result(sweep):
    sweep.add("attention_tiny", Pattern(1), sweep.results(1.7))
    sweep.add("attention_tiny", Pattern(64), sweep.results(2.5))
    sweep.add("ratplus_tiny", Pattern(1), sweep.results(1.68))
    sweep.add("ratplus_tiny", Pattern(16), sweep.results(1.66))
    sweep.add("ratplus_tiny", Pattern(32), sweep.results(float("nan")))
    sweep.add("ratplus_tiny", Pattern(64), status="failed")
    said = headline(load_sweep(sweep.write()))
    assert said.startswith("At D=16 RAT+ (ratplus_tiny) gains 0.02 nats against its dense self. The pattern keeps")
    assert said.endswith("Not to compare at D=16: attention_tiny. 4 of 6 cells finished (2 failed).")


def test_headline_of_attention_alone_and_over_seeds(sweep):
    for seed, shift in enumerate((0.0, 0.2)):
        sweep.add("attention_tiny", Pattern(1), sweep.results(1.7 + shift), seed=seed)
        sweep.add("attention_tiny", Pattern(64), sweep.results(2.5 + 2 * shift), seed=seed)
    assert headline(load_sweep(sweep.write())).startswith(
        "At D=64 attention_tiny loses 0.90 ± 0.10 nats against its dense self (± over 2 seeds). "
    )


@pytest.mark.parametrize("status", ["missing", "failed", "running", "damaged"])
def test_headline_without_results(sweep, status):
    sweep.add("ratplus_tiny", Pattern(4), status=status)
    assert headline(load_sweep(sweep.write())) == (
        f"No model has finished both its dense and a dilated cell yet. 0 of 1 cells finished (1 {status})."
    )


def test_empty_sweep(sweep):
    folder = sweep.write()
    assert headline(load_sweep(folder)) == "0 of 0 cells finished."
    with pytest.raises(ValueError, match="lists no cells"):
        report(folder)


def test_the_package_is_light_and_the_report_needs_no_torch():
    code = (
        "import sys, ratplus.analysis\n"
        "assert not {'pandas', 'matplotlib', 'torch'} & set(sys.modules)\n"
        "import ratplus.analysis.report\n"
        "assert not {'torch', 'lightning', 'hydra', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
