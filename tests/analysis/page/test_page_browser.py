"""The report's pages in a browser (Playwright and Chromium), from a file and without a network."""

import json
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from ratplus.analysis.compare import compare
from ratplus.analysis.frame.load import read_sweep
from ratplus.analysis.page.page import write_page
from ratplus.pattern import Pattern

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BAD = "<img src=x onerror=document.title='bad'>"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the `browser` extra)")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        # A container's user is root, for whom Chromium has no sandbox.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def open_page(browser, path: Path, width: int = 1280, scheme: str = "light", address: str = ""):
    """A page of a file, and in `said` what its console said."""
    # axe is put into the page by the test, which its own policy forbids.
    context = browser.new_context(
        viewport={"width": width, "height": 844}, bypass_csp=True, offline=True, color_scheme=scheme,
        permissions=["clipboard-read", "clipboard-write"],
    )  # fmt: skip
    page = context.new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.goto(path.as_uri() + address)
    return page


@pytest.fixture(scope="module")
def written(tmp_path_factory, demo) -> Path:
    """The page of the demo; its losses have items, and two cells learning curves."""
    folder = tmp_path_factory.mktemp("page") / "demo"
    shutil.copytree(demo, folder)
    draw = np.random.default_rng(0)
    rows = draw.normal(0, 0.5, 64)
    sweep = read_sweep(folder)
    for entry, loss in zip(sweep.entries, sweep.frame["loss"]):
        own = rows + draw.normal(0, 0.02, 64)
        own += loss - own.mean()
        samples = [{"task": "loss", "id": i, "loss": value} for i, value in enumerate(own.tolist())]
        place = folder / "evaluate" / entry["id"] / "samples.jsonl"
        place.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    for entry in sweep.entries[:2]:
        curve = "".join(f"{step},{4096 * step},0.001,{2 + 1 / step}\n" for step in range(1, 40))
        (folder / "adapt" / entry["stages"]["adapt"] / "curve.csv").write_text("step,tokens,lr,loss\n" + curve)
    return write_page(sweep, [], [], "At D=64 RAT+ loses 0.01 nats.", folder / "report")


@pytest.fixture(scope="module", params=[(1280, "light"), (375, "dark")], ids=["desktop", "phone"])
def opened(request, browser, written):
    """The demo's page on a light desktop and a dark phone."""
    page = open_page(browser, written, *request.param)
    yield page
    page.context.close()


@pytest.fixture
def desktop(browser, written):
    page = open_page(browser, written)
    yield page
    page.context.close()


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


def cells_of(page, key: str) -> list[str]:
    """The texts of a column of the table, as it is sorted and filtered now."""
    keys = page.locator("#cells thead th").evaluate_all("heads => heads.map(head => head.dataset.key ?? 'pin')")
    return page.locator(f"#cells tbody td:nth-child({keys.index(key) + 1})").all_inner_texts()


def losses(page) -> list[float]:
    return [float(text.split()[0]) for text in cells_of(page, "loss")]


def ids_of(page) -> dict[str, str]:
    """{model · pattern: id}."""
    found = page.evaluate("data.details.ids.map((id, row) => [titleOf(row), id])")
    return dict(found)


def address(page) -> str:
    page.wait_for_function("encode(store.state) === location.hash.slice(1)")
    return page.evaluate("location.hash")


def test_sort_filter_and_open_a_cell_with_the_keyboard(opened):
    page = opened
    assert page.locator("#count").inner_text() == "22 of 22 cells"
    assert cells_of(page, "loss")[0] == "1.740 ± 0.006"
    loss = page.locator("#cells th[data-key=loss]")
    loss.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert loss.get_attribute("aria-sort") == "ascending"
    assert losses(page) == sorted(losses(page))
    page.keyboard.press("Enter")
    assert loss.get_attribute("aria-sort") == "descending"
    assert losses(page) == sorted(losses(page), reverse=True)

    page.locator("[data-filter=model]").select_option("ratplus_tiny")
    assert set(cells_of(page, "model")) == {"ratplus_tiny"}
    page.get_by_label("Search").fill("D16")
    assert page.locator("#count").inner_text() == "2 of 22 cells"
    assert sorted(cells_of(page, "pattern")) == ["D16", "D16-W64"]
    page.get_by_label("Search").fill("")
    page.get_by_label("KV ≤ %").fill("12.5")  # D8 keeps 12.5 %
    assert sorted(cells_of(page, "pattern")) == ["D16", "D32", "D64", "D8"]
    page.get_by_label("Search").fill("nowhere")
    assert page.locator("#count").inner_text().startswith("0 of 22 cells: nothing fits")
    page.get_by_role("button", name="Show all", exact=True).click()
    assert len(cells_of(page, "model")) == 22

    button = page.locator("#cells").get_by_role("button", name="D64", exact=True).first
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert "D64 · seed 0" in dialog.inner_text()
    assert "ratplus show" in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert button.evaluate("element => element === document.activeElement")
    assert page.said == []


def test_fits_the_screen_and_passes_axe(opened):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the `browser` extra is not installed")
    page = opened
    page.get_by_label("Pin attention_tiny · D1", exact=True).check()
    page.get_by_label("Pin attention_tiny · D2", exact=True).check()
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.wait_for_function("parallel.width === document.getElementById('parallel').clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert axe.Axe().run(page).response["violations"] == []
    page.locator("#cells .open").first.click()
    assert axe.Axe().run(page).response["violations"] == []
    assert page.said == []


def test_pins_and_a_baseline_and_the_address_that_brings_them_back(browser, written, desktop):
    page = desktop
    ids = ids_of(page)
    for title in ("ratplus_tiny · D1", "ratplus_tiny · D64", "attention_tiny · D2", "attention_tiny · D1"):
        page.get_by_label(f"Pin {title}", exact=True).check()
    area = page.get_by_role("region", name="Pinned cells side by side")
    # Cell by cell: a row's own text has tabs between them only once the row is drawn.
    rows = area.locator("tr").evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
    by_name = {name: cells for name, *cells in rows}
    assert by_name["Pattern"] == ["D1", "D64", "D2", "D1"]
    assert by_name["model.recurrence"] == ["true", "true", "false", "false"]
    assert "train.context" not in by_name  # the same in all
    row = by_name["Loss"][1]
    # D64 to the dense cell of its model: paired, so the error is 0.02 × √(2/64), not that of two evaluations.
    assert re.search(r"1\.6840 ± 0\.0060\s*Δ \+0\.0150 ± 0\.00[34]\d", row)
    assert page.get_by_role("img", name="Learning curves of adapt").get_attribute("aria-label").count("loss from") == 2

    page.get_by_role("button", name="Baseline: ratplus_tiny · D64", exact=True).click()
    deltas = dict(zip(zip(cells_of(page, "model"), cells_of(page, "pattern")), cells_of(page, "delta:loss")))
    assert deltas["ratplus_tiny", "D64"] == "0.000"
    assert deltas["ratplus_tiny", "D1"].startswith("−0.015 ± 0.00")
    assert deltas["attention_tiny", "D1"].startswith("+0.056 ± 0.00")
    assert "Δ: difference to ratplus_tiny · D64. ± of Δ loss: paired" in page.locator("#delta-note").inner_text()
    page.get_by_label("Δ of every result").check()
    note = page.locator("#delta-note").inner_text()
    assert "± of Δ next token accuracy (%), Δ recall accuracy (%): unpaired" in note
    recall = dict(zip(zip(cells_of(page, "model"), cells_of(page, "pattern")), cells_of(page, "delta:recall_accuracy")))
    assert recall["ratplus_tiny", "D1"] == "+47.0 ± 1.7"  # 1.2 × √2

    page.get_by_role("link", name="4 pinned: compare").click()  # to a section, without losing the address
    assert page.locator("#pins").evaluate("element => element === document.activeElement")
    found = address(page)
    assert f"pin={ids['ratplus_tiny · D1']},{ids['ratplus_tiny · D64']}" in found
    assert f"base={ids['ratplus_tiny · D64']}" in found
    again = open_page(browser, written, address=found)
    assert again.get_by_role("region", name="Pinned cells side by side").inner_text() == area.inner_text()
    assert cells_of(again, "delta:loss") == list(deltas.values())
    assert again.locator("#base").input_value() == ids["ratplus_tiny · D64"]
    again.evaluate(f"location.hash = '#sort=-loss&cell={ids['ratplus_tiny · D4'][:9]}&pin=zz'")
    assert "ratplus_tiny · D4" in again.get_by_role("dialog").inner_text()
    assert "zz" in again.locator("#said").inner_text()
    assert losses(again) == sorted(losses(again), reverse=True)
    assert page.said == again.said == []
    again.context.close()

    for title in ("ratplus_tiny · D2", "ratplus_tiny · D4"):
        page.get_by_label(f"Pin {title}", exact=True).check()
    assert page.get_by_label("Pin ratplus_tiny · D8", exact=True).is_disabled()  # six are enough
    page.get_by_role("button", name="Unpin all").click()
    assert page.locator("#cells input:checked").count() == 0


def test_the_plots_filter_the_table(desktop):
    page = desktop
    box = page.locator("#pareto").bounding_box()
    places = page.evaluate("plot.points.filter(p => p.y < 1.7 && p.x < 20).map(p => [p.px, p.py])")
    ends = [(min(p) - 6, max(p) + 6) for p in zip(*places)]
    page.mouse.move(box["x"] + ends[0][0], box["y"] + ends[1][0])
    page.mouse.down()
    page.mouse.move(box["x"] + ends[0][1], box["y"] + ends[1][1], steps=3)
    page.mouse.up()
    assert len(cells_of(page, "loss")) == len(places) == 5
    assert max(losses(page)) < 1.7
    assert page.locator("#chips button").count() == 2
    assert "range=kv_ratio~" in address(page)
    page.locator("#chips button").first.click()
    page.locator("#chips button").first.click()
    assert len(cells_of(page, "loss")) == 22

    page.locator("#pareto").focus()
    page.keyboard.press("Home")
    assert (
        "ratplus_tiny · D64" in page.locator("#said").inner_text()
        or "attention_tiny · D64" in page.locator("#said").inner_text()
    )
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert "KV (%) 100.0" in page.locator("#said").inner_text()
    page.keyboard.press("p")
    assert page.locator("#cells input:checked").count() == 1

    page.locator("#budget").focus()
    page.keyboard.press("Home")  # the least that any row needs
    assert (
        page.locator("#budget-best")
        .inner_text()
        .startswith("Best within it in Loss: ratplus_tiny · D64, 1.684 ± 0.006")
    )
    page.get_by_role("button", name="Filter the table by it").click()
    assert set(cells_of(page, "pattern")) == {"D64"}
    page.get_by_role("button", name="Show all", exact=True).click()
    page.locator("#pareto-x").select_option("recall_accuracy")
    page.wait_for_function("document.getElementById('budget-name').textContent === 'Budget: recall accuracy (%) ≥'")

    of_recall = "parallel.axes.find(a => a.column.key === 'recall_accuracy')"
    axis = page.evaluate(f"(({{ x, scale }}) => [x, scale.at(80), scale.at(100)])({of_recall})")
    box = page.locator("#parallel").bounding_box()
    page.mouse.move(box["x"] + axis[0], box["y"] + axis[1])
    page.mouse.down()
    page.mouse.move(box["x"] + axis[0], box["y"] + axis[2] - 4, steps=3)
    page.mouse.up()
    assert 0 < len(cells_of(page, "recall_accuracy")) < 22
    assert min(float(text.split()[0]) for text in cells_of(page, "recall_accuracy")) >= 79
    page.get_by_text("Add a range", exact=True).click()
    page.locator("#range-column").select_option("recall_accuracy")
    page.locator("#range-from").fill("95")
    page.locator("#range-to").fill("")
    page.get_by_role("button", name="Set range").click()
    assert {text[:2] for text in cells_of(page, "recall_accuracy")} == {"95", "96", "97", "99"}
    assert page.said == []


def test_copies_of_the_rows_shown(desktop):
    page = desktop
    page.get_by_label("Search").fill("D16-W64")
    copied = {}
    for name in ("Markdown", "LaTeX", "CSV"):
        page.get_by_label(f"Copy the rows shown as {name}").click()
        page.wait_for_function(f"document.getElementById('copied').textContent === '2 rows copied as {name}.'")
        copied[name] = page.evaluate("navigator.clipboard.readText()")
    lines = copied["Markdown"].splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("Sweep demo. Δ: difference to the dense cell of the same model, variant and seed.")
    first = [cell.strip() for cell in lines[4].split("|")]
    assert first[1:5] == ["D16-W64", "attention_tiny", "2.200 ± 0.006", "+0.460 ± 0.003"]
    assert r"D16-W64 & ratplus\_tiny & 1.675 $\pm$ 0.006 = & +0.006 $\pm$ 0.00" in copied["LaTeX"]  # tied with the best
    head, first, _ = copied["CSV"].splitlines()
    row = dict(zip(head.split(","), first.split(",")))
    assert (row["loss"], row["loss_stderr"], row["delta:loss_paired"]) == ("2.2", "0.006", "true")
    assert float(row["delta:loss"]) == pytest.approx(0.46)
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    page.get_by_label("Copy the rows shown as CSV").click()
    assert page.get_by_role("dialog").locator("textarea").input_value() == copied["CSV"]
    assert page.said == []


def test_names_with_markup_stay_text(browser, folder_of_sweep, tmp_path):
    sweep = folder_of_sweep(tmp_path / "hostile")
    with mock.patch("os.fsync"):
        for dilation in (1, 4):
            axes = {f"a{BAD}": dilation, "b": f"</script>{BAD}{dilation}"}
            results = sweep.results(1.7, 0.8) | {f"{BAD}/acc": (0.5, 0.1)}
            sweep.add(f"m{BAD}", Pattern(dilation), results, axes=axes,
                      curve=[(1, 10, 2.0), (2, 20, 1.5)])  # fmt: skip
        sweep.add(f"m{BAD}", Pattern(8), status="failed", message=f"</script>{BAD}")
    path = write_page(read_sweep(sweep.write(BAD)), [], [], BAD, sweep.path / "report")
    page = open_page(browser, path)
    for box in page.locator("#cells input[type=checkbox]").all():
        box.check()
    page.get_by_label("Δ of every result").check()
    page.locator("#pareto-x").select_option(f"a{BAD}")
    page.locator("#pareto").focus()
    page.keyboard.press("Home")
    page.wait_for_function("plot.x.key.startsWith('a<')")
    page.locator("#cells .open").last.click()
    assert BAD in page.get_by_role("dialog").inner_text()
    assert page.locator("img").count() == 0
    assert page.title() != "bad"
    assert page.said == []
    page.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (375, "light")])
def test_a_comparison_sorts_and_filters_and_passes_axe(browser, two_reported, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the `browser` extra is not installed")
    page = open_page(browser, two_reported, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    count = page.locator("#count")
    assert count.inner_text() == "15 of 15 differences"
    page.locator("[data-filter=metric]").select_option("loss")
    assert count.inner_text() == "3 of 15 differences"
    page.locator("#cells th", has_text="Δ").get_by_role("button").click()
    assert cells_of(page, "pattern") == ["D4", "D1", "D2"]
    page.locator("[data-filter=verdict]").select_option("higher")
    assert cells_of(page, "pattern") == ["D2"]
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert axe.Axe().run(page).response["violations"] == []
    assert "verdict=higher" in address(page)
    assert page.said == []
    page.context.close()
