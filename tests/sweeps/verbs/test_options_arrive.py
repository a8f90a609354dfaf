"""Every option of a verb arrives where the work is done, as the argument that it is meant to be."""

import inspect
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from ratplus import ModelConfig, Pattern, PatternMap
from ratplus.sweeps import cli
from ratplus.sweeps.views.cost_plan import Throughput


class Enough(Exception):
    """The work was called; what would follow is not this test's."""


SWEEP = "ratplus.sweeps."
# Of each row: the words, the function that does the work, and what of its arguments the words decide, all not as by
# default; then those that it has without the options.
ROWS = [
    (
        "sync F --entity me --project p --dry-run --offline --checkpoints --workspace", SWEEP + "mirror.sync.sync",
        dict(folder=Path("F"), entity="me", project="p", dry_run=True, offline=True, checkpoints=True, workspace=True),
        dict(folder=Path("F"), entity=None, project=None, dry_run=False, offline=False, checkpoints=False,
             workspace=False),
    ),
    ("sync F --offline", SWEEP + "mirror.sync.sync", dict(offline=True, dry_run=False, checkpoints=False), None),
    ("sync F --checkpoints", SWEEP + "mirror.sync.sync", dict(checkpoints=True, workspace=False, offline=False), None),
    ("sync F --workspace", SWEEP + "mirror.sync.sync", dict(workspace=True, checkpoints=False, dry_run=False), None),
    ("pack F --out a.zip", SWEEP + "share.pack.pack", dict(folder=Path("F"), out=Path("a.zip")),
     dict(folder=Path("F"), out=None)),
    ("evaluate --add ruler F a=1 --config-dir c --json", SWEEP + "runner.add_suite.add_suite",
     dict(suite="ruler", folder=Path("F"), words=["a=1"], config_dir="c", as_json=True), None),
    ("evaluate a=1 -m --config-dir c", SWEEP + "runner.cells.run_words",
     dict(overrides=["a=1"], config_dir="c", multirun=True, last="evaluate"), None),
    *(
        (f"{verb} a=1 -m --config-dir c", SWEEP + "runner.cells.run_words",
         dict(overrides=["a=1"], config_dir="c", multirun=True, last=verb), dict(config_dir=None, multirun=False))
        for verb in ("pretrain", "adapt", "sft")
    ),
    ("export M T --format hf --force --pattern D16 --dtype float16 --shard-gb 2.5", "ratplus.checkpoint.hub.export_hf",
     dict(folder="M", target=Path("T"), shard_bytes=2_500_000_000, force=True, pattern="D16", dtype="float16"), None),
    ("export M T --format hf", "ratplus.checkpoint.hub.export_hf",
     dict(shard_bytes=5_000_000_000, force=False, pattern=None, dtype="float32"), None),
    ("export M T --force", "ratplus.checkpoint.official.export_official",
     dict(folder="M", target=Path("T"), force=True), dict(force=False)),
    ("import M.pt T --d-head 64 --max-len 99", "ratplus.checkpoint.adopt.read_foreign",
     dict(path=Path("M.pt"), d_head=64, max_len=99), dict(path=Path("M.pt"), d_head=128, max_len=None)),
    ("import owner/name T --revision v2", "ratplus.checkpoint.llama.download.download_model",
     dict(name="owner/name", revision="v2"), dict(revision=None)),
    ("generate model=M prompt=x sweep=S tokenizer=t", "ratplus.stages.load.load",
     dict(place="M", sweep="S", tokenizer="t"), None),
    ("plan a=1 --config-dir c", SWEEP + "define.compose.compose_cells", dict(overrides=["a=1"], config_dir="c"), None),
    ("plan --vocab 9 --mfu 0.3 --tflops 5 --tokens-per-second 7", SWEEP + "views.cost_plan.print_costs",
     dict(text_vocab=9, speed=Throughput(0.3, 5.0, 7.0)), dict(text_vocab=None, speed=Throughput(0.4, 989.0, None))),
    ("prepare a=1 --config-dir c", SWEEP + "define.compose.compose_one", dict(overrides=["a=1"], config_dir="c"), None),
    ("sweep a=1 --config-dir c", SWEEP + "define.compose.compose_cells", dict(overrides=["a=1"], config_dir="c"), None),
    ("status . --watch 2", SWEEP + "views.status_text.watch", dict(folder=Path("."), seconds=2.0), None),
    ("status . --watch", SWEEP + "views.status_text.watch", dict(seconds=5.0), None),
    ("show abcd . --json", SWEEP + "views.stage_text.print_stage", dict(wanted="abcd", folder=".", as_json=True),
     dict(as_json=False)),
    ("show abcd", SWEEP + "views.stage_text.print_stage", dict(wanted="abcd", folder=None, as_json=False), None),
    ("compare . D1 D16 --where a==1", "ratplus.analysis.paired.cells.compare_cells",
     dict(folder=Path("."), names=["D1", "D16"], where="a==1"), dict(where=None)),
    ("best . --metric loss --max a=1 --max b=2 --min c=3 --tie cheapest --where d==4",
     "ratplus.analysis.paired.best.choose",
     dict(folders=[Path(".")], metric="loss", most={"a": 1.0, "b": 2.0}, least={"c": 3.0}, tie="cheapest",
          where="d==4"), None),
    ("best . --metric loss", "ratplus.analysis.paired.best.choose",
     dict(metric="loss", most={}, least={}, tie="best", where=None), None),
    ("report . --baseline D4 --reference paper", "ratplus.analysis.report.report",
     dict(folder=Path("."), baseline="D4", reference="paper"), dict(baseline=None, reference=None)),
    ("bench report --cells 7", SWEEP + "bench.generated_sweep.print_bench", dict(cells=7), dict(cells=None)),
]  # fmt: skip


def given_to(monkeypatch, words: list[str], function: str) -> dict:
    """The arguments, by name, with which a command calls a function."""
    module, name = function.rsplit(".", 1)
    module = import_module(module)
    signature, calls = inspect.signature(getattr(module, name)), []

    def record(*args, **kwargs):
        calls.append(signature.bind(*args, **kwargs))
        raise Enough

    verb, *rest = words
    arguments = cli.parser_of(verb).parse_intermixed_args(rest)
    with monkeypatch.context() as patched:
        patched.setattr(module, name, record)
        with pytest.raises(Enough):
            cli.verb_module(verb).run(arguments)
    (bound,) = calls
    bound.apply_defaults()
    return dict(bound.arguments)


def without_options(words: list[str]) -> list[str]:
    """The words before the first option of two dashes, or of one."""
    first = next(i for i, word in enumerate(words) if word.startswith("-"))
    return words[:first]


@pytest.mark.parametrize(("line", "function", "expected", "default"), ROWS, ids=[row[0] for row in ROWS])
def test_what_an_option_says_is_what_the_work_gets(line, function, expected, default, monkeypatch):
    if line.startswith("report"):
        monkeypatch.setattr("ratplus.analysis.frame.load.read_sweep", lambda _: SimpleNamespace(entries=[]))
    words = line.split()
    found = given_to(monkeypatch, words, function)
    assert {name: found[name] for name in expected} == expected
    if default is not None:
        found = given_to(monkeypatch, without_options(words), function)
        assert {name: found[name] for name in default} == default


def test_a_text_gets_the_settings_that_are_asked_for(monkeypatch):
    """With the tokenizer's end-of-text as the token that ends it."""
    import torch

    dense = PatternMap.uniform(Pattern(), 1, 2)
    model = SimpleNamespace(config=ModelConfig(257, 1, 8, 4, max_len=64))
    tokenizer = SimpleNamespace(encode=lambda text: [1, 2, 3], eos_id=256)
    found = SimpleNamespace(model=model, tokenizer=tokenizer, patterns=dense)
    monkeypatch.setattr("ratplus.stages.load.load", lambda *_: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [
        "generate",
        "model=M",
        "prompt=abc",
        "temperature=0.5",
        "top_p=0.9",
        "seed=3",
        "max_new_tokens=5",
        "pattern=D4",
    ]
    given = given_to(monkeypatch, words, "ratplus.model.generate.stream")
    assert {name: given[name] for name in ("tokens", "patterns", "max_new_tokens", "temperature", "top_p", "seed")} == {
        "tokens": [[1, 2, 3]], "patterns": PatternMap.uniform(Pattern(4), 1, 2), "max_new_tokens": 5,
         "temperature": 0.5,
        "top_p": 0.9, "seed": 3,
    }  # fmt: skip
    assert given["stop_token"] == 256
    plain = given_to(monkeypatch, words[:3], "ratplus.model.generate.stream")
    assert plain["patterns"] == dense
    assert (plain["temperature"], plain["top_p"], plain["seed"], plain["stop_token"]) == (0.8, 0.95, 0, 256)
