"""What a cell returns to a sweeper, and what is refused of it; what runs a cell's words, and what follows its end."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from ratplus.config.run import LauncherSection, LoggerSection
from ratplus.sweeps import hydra_app
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch.launch import Ended
from ratplus.sweeps.runner import cells
from ratplus.sweeps.runner.objective import check_asked, values_of
from ratplus.sweeps.runner.search_words import parse

ENTRY = {"id": "a" * 12, "model": "m", "label": "D4", "seed": 0}


@pytest.fixture
def frame(monkeypatch):
    """The row of a cell, as reports have it."""
    row = {
        "loss": 1.5, "loss_stderr": float("nan"), "perplexity": float("nan"), "perplexity_stderr": 0.1, "odd": None,
        "odd_stderr": float("nan"), "bad": "text", "bad_stderr": float("nan"), "kv_ratio": 0.25, "timing:seconds": 7,
        "timing:lost": None, "losses": 2.5, "losses_stderr": 0.5,
    }  # fmt: skip
    made = pd.DataFrame([row])
    made.attrs["metrics"] = ["loss", "perplexity", "odd", "bad", "losses"]
    asked = []

    def read_sweep(folder, only):
        asked.append((folder, only))
        return SimpleNamespace(frame=made)

    monkeypatch.setattr("ratplus.analysis.frame.load.read_sweep", read_sweep)
    return asked


def test_values_as_numbers(frame):
    found = values_of(["timing:seconds", "loss", "kv_ratio", "losses"], Path("x"), ENTRY)
    assert found == [7.0, 1.5, 0.25, 2.5]
    assert [type(value) for value in found] == [float] * 4
    assert frame == [(Path("x"), {"a" * 12})]
    assert values_of([], Path("x"), ENTRY) == []


@pytest.mark.parametrize("name", ["perplexity", "timing:lost"])
def test_a_value_that_is_no_number(frame, name):
    with pytest.raises(ValueError, match=rf"^objective: {name} of m D4 is no number \((nan|None)\)$"):
        values_of(["loss", name], Path("x"), ENTRY)


@pytest.mark.parametrize(("name", "near"), [("odd", ""), ("bad", ""), ("los", "did you mean loss? "), ("lo", "")])
def test_a_value_that_is_not_there(frame, name, near):
    """A result of which there is neither a value nor an error is none."""
    from ratplus.analysis.frame.tasks import COUNTED

    with pytest.raises(UsageError) as told:
        values_of([name], Path("x"), ENTRY)
    known = ", ".join(["loss", "perplexity", "losses", *COUNTED, "timing:seconds", "timing:lost"])
    assert str(told.value) == f"objective: got {name!r}, which this cell has not; {near}allowed: {known}"


@pytest.mark.parametrize(
    "words",
    [["eval.tasks=[piqa]"], ["eval.positions.width=32"], ["eval.efficiency.enabled=true"],
     ["eval.niah.tasks=[niah_single_1]"]],
)  # fmt: skip
def test_other_suites_may_find_names_that_nobody_knows(words):
    plain = compose_one([]).config
    with pytest.raises(UsageError, match="objective: got 'new/acc'"):
        check_asked(replace(plain, objective="new/acc"))
    check_asked(replace(compose_one(words).config, objective="new/acc"))
    lacking = replace(
        compose_one([*words, "eval.cloze.items=0", "train.context=512"]).config, objective="cloze_accuracy"
    )
    with pytest.raises(UsageError, match="objective: got 'cloze_accuracy'"):
        check_asked(lacking)


# ---- ratplus-hydra ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "result", "said"),
    [(None, None, "done"), ("loss", 1.5, "loss 1.5"), (["loss", "kv_ratio"], [1.5, 0.123457],
                                                      "loss 1.5, kv_ratio 0.123457")],
)  # fmt: skip
@pytest.mark.parametrize("status", ["done", "missing"])
def test_what_a_job_returns_and_says(monkeypatch, caplog, objective, result, said, status):
    calls = []
    entry = {"id": "i" * 12, "model": "m", "label": "D4", "seed": 2, "stages": {"evaluate": "e"}}
    config = replace(compose_one([]).config, output="out", objective=objective)
    composed = replace(compose_one([]), config=config)
    values = {"loss": 1.5, "kv_ratio": 0.123456789}
    monkeypatch.setattr(cells, "planned", lambda *words: [entry])
    monkeypatch.setattr("ratplus.records.status.cell_state", lambda *_: SimpleNamespace(status=status))
    monkeypatch.setattr(hydra_app, "check_asked", lambda config: calls.append("asked"))
    monkeypatch.setattr("ratplus.sweeps.define.manifest.add_cells", lambda *words: calls.append(words))
    monkeypatch.setattr("ratplus.sweeps.launch.launch.launch", lambda *words: calls.append(words) or Ended(code))
    monkeypatch.setattr(hydra_app, "values_of", lambda names, folder, entry: [values[name] for name in names])
    monkeypatch.setattr(hydra_app, "_folders", {})
    code = 0
    with caplog.at_level("INFO"):
        found = hydra_app._run_cell(composed)
    assert found == pytest.approx(result, rel=1e-5) if result else found is None
    assert type(found) is type(result)
    assert calls == ["asked"] * (status != "done") + [
        (Path("out"), "out", [entry]), ([entry], Path("out"), "evaluate", config),
    ]  # fmt: skip
    assert list(hydra_app._folders) == [Path("out")]
    assert caplog.messages == [f"m D4 seed=2 (out/evaluate/{'i' * 12}): {said}"]
    code, entry["seed"] = 3, 0
    with pytest.raises(hydra_app.CellEnded) as ended:
        hydra_app._run_cell(composed)
    assert (ended.value.code, ended.value.text) == (3, f"m D4 (out/evaluate/{'i' * 12}) did not end well")


def test_a_dry_run_of_a_job_runs_nothing(monkeypatch):
    config = replace(compose_one([]).config, dry_run=True, objective="loss")
    composed, calls = replace(compose_one([]), config=config), []
    monkeypatch.setattr(cells, "run_composed", lambda *words: calls.append(words) or 0)
    monkeypatch.setattr(cells, "planned", lambda *_: pytest.fail("nothing is planned"))
    assert hydra_app._run_cell(composed) is None
    assert calls == [([composed], "evaluate")]


def test_where_hydra_looks_for_files(tmp_path):
    """A file of the user's adds to ours, and stands for none, as in `ratplus`."""
    folder = tmp_path / "my"
    for name, text in (("pattern/dilated", "dilation: 9\n"), ("pattern/mine", "dilation: 7\n")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    with hydra_app._hydra(SimpleNamespace(config_dir=str(folder))) as app:
        found = app.config_loader.get_search_path().get_path()
    assert [(one.provider, one.path) for one in found] == [
        ("hydra", "pkg://hydra.conf"), ("main", "pkg://ratplus.conf"), ("command-line", f"file://{folder}"),
        ("schema", "structured://"),
    ]  # fmt: skip
    assert compose_one(["pattern=mine"], str(folder)).config.pattern.dilation == 7
    with pytest.raises(UsageError, match=r"dilated.yaml: is not read, since ratplus has a file of that name"):
        compose_one(["pattern=dilated"], str(folder))
    with hydra_app._hydra(SimpleNamespace(config_dir=None)) as app:
        assert len(app.config_loader.get_search_path().get_path()) == 3


# ---- from words to the report -------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch):
    """What `run_composed` calls, in order; `ran.ended` is how the launcher ends."""
    made = SimpleNamespace(calls=[], ended=Ended(0))
    monkeypatch.setattr(cells, "plan_cells", lambda found: ["entry"] * len(found))
    monkeypatch.setattr(cells, "check_records", lambda *words: made.calls.append(("records", *words)))
    monkeypatch.setattr(cells, "check_store", lambda *words: made.calls.append(("store", *words)))
    monkeypatch.setattr(cells, "add_cells", lambda *words: made.calls.append(("add", *words)))
    monkeypatch.setattr(cells, "final_report", lambda *words: made.calls.append(("report", *words)))
    monkeypatch.setattr("ratplus.sweeps.launch.launch.launch", lambda *words: made.calls.append(("launch", *words[:3]))
                        or made.ended)  # fmt: skip
    monkeypatch.setattr(
        "ratplus.sweeps.mirror.live.warn_without_key", lambda *words: made.calls.append(("key", *words))
    )
    return made


@pytest.mark.parametrize("mode", ["none", "offline", "online"])
@pytest.mark.parametrize("many", [True, False])
def test_what_words_lead_to(ran, mode, many):
    words = ["pattern.dilation=4,16"] if many else ["pattern.dilation=4"]
    words += ["output=out/x", f"logger.wandb={mode}", "run.store=s"]
    count = 2 if many else 1
    assert cells.run_words(words, None, many, "evaluate") == 0
    folder, entries = Path("out/x"), ["entry"] * count
    logger = LoggerSection(wandb=mode)
    assert [call for call in ran.calls if call[0] != "report"] == [
        *[("store", "s", folder)] * count, *[("key", folder)] * (mode == "online"), ("records", folder, entries),
        ("add", folder, "x", entries), ("launch", entries, folder, "evaluate"),
    ]  # fmt: skip
    (report,) = (call for call in ran.calls if call[0] == "report")
    assert (report[1], report[2].wandb) == (folder, logger.wandb)


@pytest.mark.parametrize(
    ("last", "ended", "reported"),
    [("evaluate", Ended(0), True), ("evaluate", Ended(1), True), ("evaluate", Ended(2), False),
     ("evaluate", Ended(143), False), ("evaluate", Ended(0, complete=False), False), ("adapt", Ended(0), False)],
)  # fmt: skip
def test_a_report_follows_where_all_cells_have_ended(ran, last, ended, reported):
    ran.ended = ended
    assert cells.run_words(["output=out"], None, False, last) == ended.code
    assert ("report" in [call[0] for call in ran.calls]) is reported


def test_fine_tuning_that_nobody_asked_for(ran):
    for words, many in (([], False), (["train.sft.steps=0,5", "train.sft.tasks=[niah_single_1]"], True)):
        with pytest.raises(UsageError) as told:
            cells.run_words([*words, "output=out"], None, many, "sft")
        assert str(told.value) == (
            "train.sft.steps: got 0, so there is no stage `sft`; set it, and train.sft.tasks, or use adapt"
        )
    assert ran.calls == []


@pytest.mark.parametrize(
    ("kind", "accelerator", "there", "refused"),
    [("local", "cuda", False, True), ("local", "cuda", True, False), ("slurm", "cuda", False, False),
     ("local", "auto", False, False), ("local", "cpu", False, False)],
)  # fmt: skip
def test_a_gpu_that_is_asked_for_is_there(monkeypatch, kind, accelerator, there, refused):
    import torch

    config = compose_one([f"run.accelerator={accelerator}"]).config
    if kind == "slurm":
        config = replace(config, launcher=LauncherSection(kind="slurm", workers=None, threads=None))
    monkeypatch.setattr(cells.Path, "exists", lambda path: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    cell = SimpleNamespace(config=config)
    if refused:
        with pytest.raises(UsageError, match="run.accelerator=cuda: this machine has no CUDA device; use cpu or auto"):
            cells._check_accelerator(cell)
    else:
        cells._check_accelerator(cell)


@pytest.mark.parametrize("paths", [[], ["a.png"], ["t.md"], ["t.md", "u.md", "a.png", "b.png"]])
@pytest.mark.parametrize("mode", ["none", "offline"])
def test_what_is_said_of_a_report(monkeypatch, capsys, paths, mode):
    calls, folder = [], Path("x")
    frame = pd.DataFrame({"status": ["done", "failed", "done"]})
    found = SimpleNamespace(frame=frame, entries=[1, 2, 3])
    written = [folder / name for name in [*paths, "index.html"]]
    monkeypatch.setattr("ratplus.analysis.frame.load.read_sweep", lambda place: found)
    monkeypatch.setattr(
        "ratplus.analysis.report.report", lambda *words, **named: calls.append((words, named)) or written
    )
    monkeypatch.setattr("ratplus.analysis.report.headline", lambda told: "the headline")
    monkeypatch.setattr("ratplus.sweeps.define.reproduce.reproducer", lambda count: ("reproducer", count))
    monkeypatch.setattr("ratplus.sweeps.mirror.live.mirror_report", lambda *words: calls.append(words))
    logger = LoggerSection(wandb=mode)
    cells.final_report(folder, logger)
    table = "x/t.md" if "t.md" in paths else "x/report"
    figure = "; figure: x/a.png" if "a.png" in paths else ""
    assert capsys.readouterr().out == (f"the headline\n2 done, 1 failed; table: {table}{figure}; page: x/index.html\n")
    assert calls == [
        ((folder,), {"sweep": found, "reproduce": ("reproducer", 3)}),
        *[(folder, logger)] * (mode != "none"),
    ]
    calls.clear()
    frame["status"] = ["failed", "missing", "missing"]
    cells.final_report(folder, logger)
    assert capsys.readouterr().out == "1 failed, 2 missing; nothing to report yet\n"
    assert calls == []


# ---- words of a search --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("modle=x", "search: 'modle=x': did you mean model=?"), ("model", "search: 'model': give key=value; keys: "),
        ("zzz=1", "search: 'zzz=1': give key=value; keys: "), ("length=null", None),
        ("batch=x", "batch: got 'x'; it must be a whole number"), ("epsilon=x", "search: 'epsilon=x'"),
        ("dry_run=yes", "dry_run: got 'yes'; it must be true or false"), ("=x", "search: '=x': give key=value"),
        ("output=null", None), ("dry_run=null", "dry_run: got null; it must have a value, such as False"),
        ("modle", "search: 'modle': give key=value"),
    ],
)  # fmt: skip
def test_a_word_of_a_search_that_is_none(word, line):
    if line is None:
        assert getattr(parse(["model=m", word])[0], word.partition("=")[0]) is None
        return
    with pytest.raises(UsageError) as told:
        parse([word])
    assert str(told.value).startswith(line)


def test_words_of_a_search_and_of_its_data():
    section, rest = parse(
        ["model=m", "seed=3", "dry_run=TRUE", "data=text", "+data.x=1", "train.context=9", "eval.x=2"]
    )
    assert (section.model, section.seed, section.dry_run) == ("m", 3, True)
    assert rest == ["data=text", "+data.x=1", "train.context=9", "eval.x=2"]
    for text in ("[layers[D1,D4], ,D16]", "layers[D1,D4],D16"):
        assert parse(["model=m", f"candidates={text}"])[0].candidates == ["layers[D1,D4]", "D16"]
    assert parse(["model=m", "candidates=D16,layers[D1,D4]"])[0].candidates == ["D16", "layers[D1,D4]"]
