"""The report's page: one file, safe whatever the records say, and of use in a browser (Playwright and Chromium)."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from ratplus.analysis.compare import compare
from ratplus.analysis.draw import style
from ratplus.analysis.draw.tables import Table
from ratplus.analysis.frame.load import read_sweep
from ratplus.analysis.page.page import write_page
from ratplus.analysis.report import report
from ratplus.pattern import Pattern

# Sorting, filtering and opening a cell need no figures, which take most of a report's time.
HEADLINE = "At D=64 RAT+ loses 0.01 nats."


def page_of(folder, **options) -> str:
    sweep = read_sweep(folder)
    return write_page(sweep, [], [], HEADLINE, folder / "report", **options).read_text(encoding="utf-8")


def data_of(text: str) -> dict:
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert "<" not in inside  # a browser would also take `<!--` or `<script` for markup
    return json.loads(inside)


def test_one_file_that_needs_nothing_else(everything, reported):
    text = reported[-1].read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert text.count("data:image/png;base64,") == len(list((everything / "report").glob("*.png")))
    assert "At D=64 RAT+" in text
    assert "Commonsense, pattern by pattern" in text
    assert text.count("<img ") == text.count('alt="Figure')


def test_tables_are_shown_from_their_frames(sweep):
    sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7))
    shown = pd.DataFrame({"A|b": ["<i>x*y</i>", "<i>x*y</i>"], "n": ["**bold_1**", "−1.0\n± 0.1"]})
    table = Table("my_table", shown, shown, "c_ **d** &", ["one|two"], grouped=True)
    page = write_page(read_sweep(sweep.write()), [], [table], HEADLINE, sweep.path / "report", titles={"my_table": "T"})
    text = page.read_text(encoding="utf-8").partition('<h2 id="tables"')[2].partition("</section>")[0]
    assert "<summary>T</summary>" in text
    assert '<p class="soft">c_ **d** &amp;</p>' in text
    assert '<th scope="col">A|b</th><th scope="col" class="n">n</th>' in text
    assert re.findall("<tr>(<td.*?)</tr>", text) == [
        '<td>&lt;i&gt;x*y&lt;/i&gt;</td><td class="n"><strong>bold_1</strong></td>',
        '<td></td><td class="n">−1.0 ± 0.1</td>',
    ]
    assert '<p class="soft">one|two</p>' in text
    assert "my_table.md, .tex and .csv beside this page" in text


def test_what_is_known_of_a_cell(sweep):
    curve = [(step, 4096 * step, 2 + 1 / step) for step in range(1, 201)]
    for dilation in (1, 4):
        sweep.add("ratplus_tiny", Pattern(dilation), sweep.results(1.7, 0.8), curve=curve, timing={"decode_ms": 1.25})
    text = page_of(sweep.write(), reproduce=lambda entry: f"ratplus evaluate pattern.dilation={entry['label']}")
    data = data_of(text)
    assert [cell["title"] for cell in data["cells"]] == ["ratplus_tiny · D1 · seed 0", "ratplus_tiny · D4 · seed 0"]
    cell = data["cells"][1]
    assert cell["command"] == "ratplus evaluate pattern.dilation=D4"
    assert dict(cell["stages"]) == sweep.cells[1]["stages"]
    assert ["loss", "1.7000 ± 0.0060"] in cell["results"]
    assert ["timing:decode_ms", "1.25"] in cell["results"]
    points = data["curves"][sweep.cells[1]["stages"]["adapt"]]
    assert len(points) == 80
    assert (points[0], points[-1]) == ([4096, 3.0], [819200, 2.005])
    assert "<dt>train.context</dt><dd>512</dd>" in text  # shared by all, so said once


def test_without_a_reproducer_the_page_names_the_verb_that_has_it(sweep):
    cell = sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7))
    command = data_of(page_of(sweep.write()))["cells"][0]["command"]
    assert command == f"ratplus show {cell['id']} {sweep.path}"


def test_failures_are_shown_and_their_text_is_harmless(sweep):
    sweep.add_failures()
    text = page_of(sweep.write())
    assert "<b>boom" not in text
    assert text.count("</script>") == 2
    assert "&lt;/script&gt;&lt;b&gt;boom&lt;/b&gt; &amp; 50%" in text
    cells = data_of(text)["cells"]
    assert "\\u003c/script" in text
    assert [cell["status"] for cell in cells] == ["done", "done", "failed", "failed", "running", "missing", "damaged"]
    assert cells[2]["error"].startswith("loss=nan: training had diverged")
    assert cells[3]["error"].endswith("</script><b>boom</b> & 50%")
    section = text.partition('id="problems"')[2].partition("</section>")[0]
    assert section.count('class="bad"') == 5


@pytest.mark.parametrize("kind", ["one cell", "nothing finished", "not a number", "infinite", "seeds", "older format"])
def test_odd_sweeps_have_a_page_too(sweep, kind, monkeypatch):
    monkeypatch.setattr(style, "save", lambda figure, stem: [])  # drawn, but not rendered
    if kind == "nothing finished":
        sweep.add("ratplus_tiny", Pattern(4), status="failed")
        sweep.add("ratplus_tiny", Pattern(8), status="missing")
    elif kind == "seeds":
        sweep.add("ratplus_tiny", Pattern(1), sweep.results(1.7), seed=3)
        sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.8), seed=3)
        sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.9), seed=4)
    else:
        loss = {"not a number": float("nan"), "infinite": float("inf")}.get(kind, 1.7)
        cell = sweep.add("ratplus_tiny", Pattern(4), sweep.results(loss))
        if kind == "older format":
            record = sweep.path / "evaluate" / cell["id"] / "record.json"
            record.write_text(record.read_text().replace('"format": 1', '"format": 0'))
    paths = report(sweep.write())
    text = paths[-1].read_text(encoding="utf-8")
    data = data_of(text)
    assert len(data["cells"]) == len(sweep.cells)
    if kind == "older format":
        assert "record format 0; this version reads format 1" in data["cells"][0]["error"]
    if kind == "nothing finished":
        assert "0 of 2 cells finished (1 failed, 1 missing)" in text


# ---- in a browser ----

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module", params=[1280, 390], ids=["desktop", "phone"])
def opened(request, tmp_path_factory, demo):
    """A Playwright page with the demo's report, and the messages of its console."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the `browser` extra)")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    folder = tmp_path_factory.mktemp("page") / "demo"
    shutil.copytree(demo, folder)
    sweep = read_sweep(folder)
    path = write_page(sweep, [], [], HEADLINE, folder / "report")
    with api.sync_playwright() as playwright:
        # A container's user is root, for whom Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        # axe is put into the page by the test, which its own policy forbids.
        context = browser.new_context(viewport={"width": request.param, "height": 844}, bypass_csp=True, offline=True)
        page = context.new_page()
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto(path.as_uri())
        yield page
        browser.close()


@pytest.fixture(scope="module")
def two_reported(tmp_path_factory, folder_of_sweep) -> Path:
    """The page that compares two sweeps of three patterns."""
    place = tmp_path_factory.mktemp("two")
    folders = [folder_of_sweep(place / name) for name in ("first", "second")]
    for folder, shifts in zip(folders, ((0, 0, 0), (0, 0.1, -0.05))):
        for dilation, shift in zip((1, 2, 4), shifts):
            folder.add("ratplus_tiny", Pattern(dilation), folder.results(1.7 + shift, 0.8))
        folder.write()
    return compare(*(folder.path for folder in folders))[-1]


def column(page, number: int) -> list[str]:
    return page.locator(f"#cells tbody tr:not([hidden]) td:nth-child({number})").all_inner_texts()


def test_sort_filter_and_open_a_cell_with_the_keyboard(opened):
    page = opened
    page.reload()
    assert page.locator("#count").inner_text() == "22 of 22 cells"
    loss = page.locator("#cells th", has_text="Loss").first
    loss.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert loss.get_attribute("aria-sort") == "ascending"
    values = [float(text) for text in column(page, 3)]
    assert values == sorted(values)
    page.keyboard.press("Enter")
    assert loss.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in column(page, 3)] == sorted(values, reverse=True)

    page.get_by_label("Model").select_option("ratplus_tiny")
    assert set(column(page, 1)) == {"ratplus_tiny"}
    page.get_by_label("Search").fill("D16")
    assert page.locator("#count").inner_text() == "2 of 22 cells"
    assert sorted(column(page, 2)) == ["D16", "D16-W64"]
    page.get_by_label("Search").fill("nowhere")
    assert page.locator("#count").inner_text().startswith("0 of 22 cells: nothing fits")
    page.get_by_role("button", name="Show all", exact=True).click()
    assert len(column(page, 1)) == 22

    button = page.get_by_role("button", name="D64", exact=True).first
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert "D64 · seed 0" in dialog.inner_text()
    assert "ratplus show" in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert button.evaluate("element => element === document.activeElement")
    assert page.said == []


def test_a_comparison_sorts_and_filters_and_passes_axe(opened, two_reported):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the `browser` extra is not installed")
    page = opened.context.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(two_reported.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= opened.viewport_size["width"]
    count = page.locator("#count")
    assert count.inner_text() == "15 of 15 differences"
    page.get_by_label("Metric").select_option("loss")
    assert count.inner_text() == "3 of 15 differences"
    page.locator("#cells th", has_text="Δ").get_by_role("button").click()
    assert column(page, 3) == ["D4", "D1", "D2"]
    page.get_by_label("Verdict").select_option("higher")
    assert column(page, 3) == ["D2"]
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert axe.Axe().run(page).response["violations"] == []
    assert said == []
    page.close()


def test_fits_the_screen_and_passes_axe(opened):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the `browser` extra is not installed")
    page = opened
    page.reload()
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert axe.Axe().run(page).response["violations"] == []
    page.locator(".open").first.click()
    assert axe.Axe().run(page).response["violations"] == []
