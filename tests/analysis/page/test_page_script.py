"""The page's scripts outside of a browser: numbers, addresses, copies, statistics (Node; Playwright brings one)."""

import json
import random
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from ratplus.analysis.draw.latex import to_latex
from ratplus.analysis.draw.tables import Table, number, to_csv, to_markdown
from ratplus.analysis.page.page import script_of
from ratplus.analysis.paired.bootstrap import paired_bootstrap


def node() -> str:
    try:
        from playwright._impl._driver import compute_driver_executable
    except ImportError:
        found = shutil.which("node")
        if found is None:
            pytest.skip("neither playwright (the `browser` extra) nor node on this machine")
        return found
    return str(compute_driver_executable()[0])


def run(scripts: list[str], expression: str, given=None):
    """What an expression gives in the scope of some scripts; `given` is its `given`."""
    # Infinite and missing numbers as Python writes them: JSON has no names for them, JavaScript has.
    program = f"{script_of(scripts)}\nconst given = {json.dumps(given)};\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run([node(), "-"], input=program, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_numbers_are_written_as_python_writes_them():
    draw = random.Random(0)
    values = [0.5, 1.5, 2.5, 0.125, 0.375, -0.5, -2.5, 1e6, 2.5e7, 999999.5, -0.0004, 0.0, 36.5, 37.5, 1e-9, -1.0]
    values += [draw.uniform(-3, 3) for _ in range(300)] + [draw.randrange(-999, 999) / 8 for _ in range(300)]
    cases = [
        (value, digits, error) for value in values for digits, error in ((0, 0.0), (1, 0.25), (2, 0.0), (3, 0.0125))
    ]
    assert run(["numbers"], "given.map(([v, d, e]) => number(v, d, e))", cases) == [number(*case) for case in cases]
    assert run(["numbers"], "[number(NaN, 2), number(Infinity, 1), number(-Infinity, 1), number(1, 1, Infinity)]") == [
        "—", "∞", "−∞", "1.0",
    ]  # fmt: skip


def test_a_difference_says_its_sign():
    texts = run(
        ["numbers"], "[change(0.5, 2, 0.1), change(-0.5, 2, 0.1), change(0, 2), change(0.001, 2, 0.01), change(NaN, 2)]"
    )
    assert texts == ["+0.50 ± 0.10", "−0.50 ± 0.10", "0.00", "0.00 ± 0.01", "—"]


# ---- the address ----

KNOWN = {
    "columns": ["loss", "-loss", "kv_ratio", "acc,none", "timing:ms", "a~b"],
    "filters": {"model": ["m 1", "m&2=3", "<b>"], "status": ["done"]},
    "ids": [f"{letter * 4}{letter}" for letter in "abcdefgh"] + ["aaaab"],
}
START = {
    "sort": "", "down": False, "q": "", "filters": {}, "ranges": {}, "pins": [], "base": "", "deltas": False,
    "cell": "", "all": False, "x": "", "y": "", "budget": None, "axes": [], "colour": "",
}  # fmt: skip


def decoded(text: str) -> tuple[dict, list[str]]:
    found = run(["state"], "decode(given.text, given.known)", {"text": text, "known": KNOWN})
    return {key: value for key, value in found["state"].items() if value != START[key]}, found["strange"]


def test_an_address_brings_back_what_was_chosen():
    state = START | {
        "sort": "loss", "down": True, "q": "D16 & <b>#%", "filters": {"model": "m&2=3", "status": "done"},
        "ranges": {"kv_ratio": [None, 12.5], "a~b": [-1.5, None], "acc,none": [0, 1e-7]}, "pins": ["bbbbb", "ccccc"],
        "base": "ddddd", "deltas": True, "cell": "aaaab", "x": "timing:ms", "y": "acc,none", "budget": 0.25,
        "axes": ["acc,none", "loss"], "colour": "method", "all": True,
    }  # fmt: skip
    found = run(
        ["state"],
        "(() => { const text = encode(given[0]); return [text, decode('#' + text, given[1])]; })()",
        [state, KNOWN],
    )
    assert found[1] == {"state": state, "strange": []}
    assert found[0].startswith(
        "sort=-loss&q=D16%20%26%20%3Cb%3E%23%25&model=m%262%3D3&status=done&range=kv_ratio~~12.5&"
    )
    assert "pin=bbbbb,ccccc&" in found[0]
    assert run(["state"], "encode(START)") == ""


@pytest.mark.parametrize(
    ("text", "state", "strange"),
    [
        ("#sort=-loss", {"sort": "loss", "down": True}, []),
        ("#sort=%2Dloss", {"sort": "-loss"}, []),  # a column of that very name
        ("#sort=-%2Dloss", {"sort": "-loss", "down": True}, []),
        ("#pin=bb,cc&base=d", {"pins": ["bbbbb", "ccccc"], "base": "ddddd"}, []),
        ("#pin=aaaa,zz,", {}, ["aaaa", "zz", ""]),  # two begin so, none does
        ("#pin=b,c,d,e,f,g,h,b", {"pins": [f"{x * 5}" for x in "bcdefg"]}, ["hhhhh"]),
        ("#sort=nothing&x=loss&y=nope", {"x": "loss"}, ["nothing", "nope"]),
        ("#range=loss~1~&range=loss&range=kv_ratio~x~2&range=no~1~2", {"ranges": {"loss": [1, None]}},
         ["loss", "kv_ratio~x~2", "no"]),
        ("#model=other&status=done&what=1", {"filters": {"status": "done"}}, ["model=other", "what=1"]),
        ("#q=%E0%A4%A&budget=many&deltas=2", {}, ["q=%E0%A4%A", "budget=many"]),
        ("#__proto__=1&constructor=x", {}, ["__proto__=1", "constructor=x"]),
    ],
)  # fmt: skip
def test_an_address_of_others_is_read_with_care(text, state, strange):
    assert decoded(text) == (state, strange)


# ---- copies ----

HOSTILE = [
    "=HYPERLINK(1)", "![x](https://evil.example/p.png)", "a|b `c` *d* <i>", "a_b _c_ \\", "50% & {#$~^}", "−1.0 ± 0.1",
    "@x\ny", "**1.7 ± 0.1**",
]  # fmt: skip


def test_copies_are_escaped_like_the_report_s_own_files():
    frame = pd.DataFrame({"Name_1": HOSTILE, "n (%)": [f"{i}" for i in range(len(HOSTILE))]})
    table = Table("t", frame, frame, "A *caption* of 5 %", names=1)
    given = {
        "head": list(frame.columns),
        "rows": frame.values.tolist(),
        "right": [False, True],
        "caption": table.caption,
    }
    csv_too = "toCsv(given.head, given.rows.map(([a, b]) => [a, Number(b)]))"
    markdown, latex, csv = run(["export"], f"[toMarkdown(given), toLatex(given), {csv_too}]", given)
    assert markdown == to_markdown(table)
    ours = [line for line in to_latex(table).splitlines() if line.endswith(r"\\")]
    assert [line for line in latex.splitlines() if line.endswith(r"\\")] == ours
    assert latex.count("{") == latex.count("}")
    assert csv == to_csv(frame.assign(**{"n (%)": range(len(HOSTILE))}))


def test_numbers_in_a_csv_file():
    assert run(["export"], "toCsv(['a', '-b'], [[1.5, -Infinity], [NaN, 1e-9], ['\"', -2]])") == (
        'a,\'-b\n1.5,-inf\n,1e-9\n"""",-2\n'
    )


# ---- statistics ----


def test_the_error_of_paired_differences_is_that_of_the_bootstrap():
    draw = np.random.default_rng(3)
    first, weights = draw.normal(2, 1, 300), draw.integers(1, 40, 300).astype(float)
    second = first + draw.normal(0.1, 0.05, 300)
    given = [first.tolist(), second.tolist(), weights.tolist()]
    for with_weights in (False, True):
        ours = run(["statistics"], f"pairedError(given[0], given[1], {'given[2]' if with_weights else 'null'})", given)
        theirs = paired_bootstrap(second - first, weights if with_weights else None)["stderr"]
        assert ours == pytest.approx(theirs, rel=0.06)  # of 2000 resamples
    alike = run(["statistics"], "pairedError(given[0], given[1], null)", given)
    assert alike == pytest.approx((second - first).std(ddof=1) / np.sqrt(300), rel=1e-12)


def test_the_frontier():
    points = [(1, 5), (2, 4), (2, 4), (2, 6), (3, 4), (4, 1), (5, 0.5), (0.5, 9)]
    given = [{"x": x, "y": y} for x, y in points]
    assert run(["statistics"], "frontier(given, { x: true, y: true })", given) == [7, 0, 1, 2, 5, 6]
    assert run(["statistics"], "frontier(given, { x: true, y: false })", given) == [7]
    assert run(["statistics"], "frontier([{ x: NaN, y: 1 }, { x: 1, y: Infinity }], { x: true, y: true })") == []


def test_scales_of_the_plots():
    made = "((s) => [s.log, s.ticks, given.map(s.at).map(s.back)])(scaleOf(given, 0, 100, { log: true }))"
    log, ticks, back = run(["scales"], made, [1, 10, 1000])
    assert (log, ticks) == (True, [1, 10, 100, 1000])
    assert back == pytest.approx([1, 10, 1000])
    log, ticks, back = run(["scales"], made, [0, 0.3, 1])
    assert (log, ticks) == (False, [0, 0.2, 0.4, 0.6, 0.8, 1])
    assert back == pytest.approx([0, 0.3, 1])
    assert run(["scales"], made, [5, 5])[1] == pytest.approx([4.6, 4.8, 5, 5.2, 5.4])
    assert run(["scales"], "roundedEnds(1.6781234, 1.7012345)") == [1.6781, 1.7013]
    low, high = run(["scales"], "roundedEnds(0, 1e-30)")
    assert low <= 0 < high
