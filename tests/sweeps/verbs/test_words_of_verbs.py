"""Words that verbs take, each kind and limit, and what is said of the others; the work itself is a stand-in."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cli_runs import run_verb as run

from ratplus import ModelConfig, Pattern, PatternMap
from ratplus.sweeps import cli
from ratplus.sweeps.bench import generated_sweep, measurements
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.verbs import generate


def refused(verb: str, *words: str) -> str:
    with pytest.raises(ValueError) as told:
        run(verb, *words)
    return str(told.value)


def test_no_option_is_told_by_its_beginning(capsys):
    for words in (["status", ".", "--js"], ["plan", "--tok", "5"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2
        assert "unrecognized arguments: --" in capsys.readouterr().err


# ---- plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--mfu", "--tflops", "--vocab", "--tokens-per-second"])
@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan"])
def test_numbers_of_a_plan(option, value):
    if option == "--vocab" and value in ("inf", "nan"):
        return  # no whole number, as argparse says
    assert refused("plan", option, value) == f"{option}: got {value}; it must be > 0"


def test_all_of_the_peak_is_a_fraction_and_more_is_none(monkeypatch):
    given = []
    monkeypatch.setattr("ratplus.sweeps.define.compose.compose_cells", lambda *words: words)
    monkeypatch.setattr("ratplus.sweeps.views.cost_plan.print_costs", lambda *words: given.append(words))
    assert run("plan", "a=1", "--mfu", "1", "--vocab", "1") == 0
    ((cells, vocab, speed),) = given
    assert (cells, vocab) == ((["a=1"], None), 1)
    assert (speed.mfu, speed.tflops, speed.tokens_per_second) == (1.0, 989.0, None)
    assert refused("plan", "--mfu", "1.01") == "--mfu: got 1.01; it is a fraction of --tflops: at most 1"


# ---- note ---------------------------------------------------------------------------------------------------------


def test_what_is_printed_of_a_note(tmp_path, monkeypatch, capsys):
    found, written = (tmp_path, "adapt", "a" * 12), []
    asked = []
    monkeypatch.setattr("ratplus.records.find_stage.find_stage", lambda *words: asked.append(words) or found)
    monkeypatch.setattr("ratplus.records.note.read_note", lambda folder: "there")
    monkeypatch.setattr("ratplus.records.note.write_note", lambda *words: written.append(words) or words[1].strip())
    assert run("note", "abc") == 0
    assert run("note", "abc", " new ", "--folder", "F", "--json") == 0
    assert run("note", "abc", "") == 0
    place = tmp_path / "adapt" / ("a" * 12)
    assert written == [(place, " new "), (place, "")]
    help_line = ("note", "give another folder with --folder")
    assert asked == [("abc", None, *help_line), ("abc", "F", *help_line), ("abc", None, *help_line)]
    told = {"format": 1, "folder": str(tmp_path), "stage": "adapt", "id": "a" * 12, "note": "new"}
    assert capsys.readouterr().out == (
        f"adapt {'a' * 12}: there\n{json.dumps(told, indent=1)}\nadapt {'a' * 12}: (no note)\n"
    )
    monkeypatch.setattr("ratplus.sweeps.share.unpack.is_pack", lambda folder: folder == "a.zip")
    assert refused("note", "abc", "x", "--folder", "a.zip") == (
        "note: a.zip is a pack, which is not written to; write the note in its folder"
    )


# ---- generate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("modle=x", "generate: 'modle=x': did you mean model=?"),
        ("model", "generate: 'model': give key=value; keys: "),
        ("zzz=x", "generate: 'zzz=x': give key=value; keys: "), ("seed=x", "seed: got 'x'; it must be a whole number"),
        ("top_p=x", "top_p: got 'x'; it must be a number"), ("chat=yes", "chat: got 'yes'; allowed: true, false"),
        ("seed=-1", "seed: got -1; it must be ≥ 0 and below 2^63"),
        (f"seed={1 << 63}", "seed: got 9223372036854775808;"),
        ("max_new_tokens=0", "max_new_tokens: got 0; it must be ≥ 1"),
        ("system=a", "system: got 'a'; only chat=true has a system's message"),
    ],
)  # fmt: skip
def test_a_word_that_generate_does_not_know(word, line):
    with pytest.raises(UsageError) as told:
        generate.parse(["model=M", "prompt=x", word])
    assert str(told.value).startswith(line)


def test_words_of_generate(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = generate.parse(["model=~/m", "prompt=~/p", "chat=true", "seed=3", "top_p=0.5"])
    assert (found.model, found.prompt, found.chat, found.seed, found.top_p) == (
        str(tmp_path / "m"), "~/p", True, 3, 0.5,
    )  # fmt: skip
    assert found.given == {"model", "prompt", "chat", "seed", "top_p"}
    assert generate.parse(["model=a~", "prompt=x", "chat=false"]).model == "a~"
    limit = (1 << 63) - 1
    found = generate.parse(["model=m", "prompt=a=b", f"seed={limit}", "max_new_tokens=1", "chat=true", "system="])
    assert (found.prompt, found.seed, found.max_new_tokens, found.system) == ("a=b", limit, 1, "")
    for words, line in ((["prompt=a"], "model= is missing"), (["model=a"], "prompt= is missing")):
        with pytest.raises(UsageError, match=f"^generate: {line}; give "):
            generate.parse(words)


SHAPE = ModelConfig(vocab_size=97, layers=2, d_model=64, d_head=16, max_len=64)


@pytest.mark.parametrize(
    ("count", "seconds", "speed"),
    [(5, 2.0, "2.0 tokens/s, "), (2, 0.5, "2.0 tokens/s, "), (1, 2.0, ""), (0, 4.0, ""), (5, 0.0, "")],
)
def test_the_line_on_the_cost_of_a_text(count, seconds, speed):
    plain = PatternMap.uniform(Pattern(), 2, 4)
    line = generate._cost(SHAPE, plain, 10, count, seconds, torch.float32)
    assert line.startswith(f"[{count} tokens, {speed}cache: 10 of 10 entries a head, ")
    assert line.endswith(" bytes]")
    half = generate._cost(SHAPE, plain, 10, count, seconds, torch.bfloat16)
    spent = [int(text.split()[-2].replace(",", "")) for text in (line, half)]
    assert spent[0] > spent[1]
    selecting = PatternMap.uniform(Pattern.from_label("top2x4"), 2, 4)
    assert generate._cost(SHAPE, selecting, 40, 1, 1.0, torch.float32).endswith(" of them read a step]")


@pytest.mark.parametrize(
    ("words", "asked"),
    [([], 60), (["max_new_tokens=3"], 3), (["max_new_tokens=60"], 60), (["max_new_tokens=61"], None)],
)
def test_as_many_tokens_as_there_is_room_for(monkeypatch, capsys, words, asked):
    """After a prompt of 5 tokens; 200 are usual."""
    patterns = PatternMap.uniform(Pattern(), 2, 4)
    tokenizer = SimpleNamespace(encode=lambda text: [1] * 5, eos_id=0)
    model = SimpleNamespace(config=SHAPE, embed=SimpleNamespace(weight=torch.zeros(1)))
    seen = []
    monkeypatch.setattr(generate, "_load", lambda request: (model, tokenizer, patterns))
    monkeypatch.setattr(generate, "_stream", lambda *given: seen.append(given[4].max_new_tokens) or (2, 1.0))
    if asked is None:
        assert refused("generate", "model=M", "prompt=x", *words) == (
            "max_new_tokens: got 61; after a prompt of 5 tokens the model's context of 64 leaves 60"
        )
        return
    assert run("generate", "model=M", "prompt=x", *words) == 0
    assert seen == [asked]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "--- D1 ---"
    assert "cache: 6 of 6 entries" in lines[2]


# ---- bench --------------------------------------------------------------------------------------------------------


def test_memory_where_there_is_no_proc(monkeypatch):
    """As on a Mac, where it is told in bytes, and elsewhere in kilobytes."""
    import resource

    assert generated_sweep.peak_bytes() > 10**7
    monkeypatch.setattr(generated_sweep.Path, "read_text", lambda path: "VmRSS: 5 kB\n")
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=7))
    for system, found in (("linux", 7 * 1024), ("darwin", 7)):
        monkeypatch.setattr(sys, "platform", system)
        assert generated_sweep.peak_bytes() == found
    monkeypatch.setattr(generated_sweep.Path, "read_text", lambda path: "VmRSS: 5 kB\nVmHWM:\t 9 kB\n")
    assert generated_sweep.peak_bytes() == 9 * 1024


def test_a_generated_sweep_of_the_usual_size_and_of_another(monkeypatch, capsys):
    saved: list = []
    took = dict(generate_seconds=1.0, seconds=2.0, cpu_seconds=59.9, megabytes=1.0, files=3, page_megabytes=0.5)
    monkeypatch.setattr(generated_sweep, "bench_report", lambda cells: took | {"cells": cells})
    for cells, words in ((None, "10,000 cells"), (1, "1 cells"), (0, "0 cells")):
        generated_sweep.print_bench(cells, saved.append)
        first, *target = capsys.readouterr().out.splitlines()
        assert first.startswith(f"{words} (generated in 1 s): loaded and reported in 2.0 s (59.9 s of processor time)")
        assert target == (["target: 60 s and 1000 MB: met"] if cells is None else [])
    assert [one["cells"] for one in saved] == [10_000, 1, 0]


def test_cells_of_a_generated_sweep():
    """All of five seeds, 22 patterns and two models, and as many learning rates as it takes."""
    cells = list(generated_sweep._cells(221, ["data.recall.fraction=0"]))
    told = [(c.config.model.name, c.config.pattern, c.config.seed, c.config.train.adapt.lr) for c in cells]
    assert [seed for *_, seed, _ in told[:6]] == [0, 1, 2, 3, 4, 0]
    patterns = [pattern for _, pattern, _, _ in told[:110:5]]
    assert [(p.dilation, p.window, p.sinks) for p in patterns] == [
        *((2**power, window, 0) for power in range(7) for window in (0, 32, 64)), (None, 64, 4),
    ]  # fmt: skip
    assert told[109][3] == pytest.approx(1e-3)
    assert (told[110][0], told[110][1], told[110][3]) == ("attention_tiny", patterns[0], pytest.approx(2e-3))
    assert told[220][0] == "ratplus_tiny"
    assert cells[0].axes == ["model", "pattern", "seed", "train.adapt.lr"]


@pytest.fixture
def subjects(monkeypatch):
    """What is made of names of models; `unknown` ones are neither folders nor shapes."""
    from ratplus.bench import models

    def subject_of(name, settings, vocab_size):
        if name == "nothing" or not name.startswith("shape"):
            raise ValueError(f"{name}: no folder and no shape")
        return models.Subject(name, SHAPE, lambda: None)

    monkeypatch.setattr(models, "subject_of", subject_of)
    return measurements.settings_of(cli.parser_of("bench").parse_intermixed_args(["model"]), "cpu")


def test_a_model_of_our_own_has_the_vocabulary_that_is_asked_for(subjects):
    for given, rows in ((None, 257), (1000, 1000), (1, 1)):
        found = measurements._subject("ratplus_nano", subjects, given)
        assert (found.name, found.config.vocab_size) == ("ratplus_nano", rows)
        assert found.config.max_len == subjects.longest
        assert found.patterns is measurements._named_pattern
    for wrong in (0, -5):
        with pytest.raises(ValueError, match=f"--vocab-size: got {wrong}; it must be ≥ 1"):
            measurements._subject("ratplus_nano", subjects, wrong)
    assert measurements._subject("shape-1", subjects, None).config is SHAPE
    with pytest.raises(ValueError, match="^nothing: no folder and no shape; model=nothing: no such choice"):
        measurements._subject("nothing", subjects, None)
    with pytest.raises(ValueError, match="^a=b: no folder and no shape$"):
        measurements._subject("a=b", subjects, None)


def test_a_pattern_is_a_label_or_a_name_of_a_file():
    assert measurements._named_pattern("D4", 2, 3) == PatternMap.uniform(Pattern(4), 2, 3)
    assert measurements._named_pattern("dilated", 2, 3) == PatternMap.uniform(Pattern(16), 2, 3)
    with pytest.raises(ValueError, match=r"zzz; pattern=zzz: no such choice|zzz.*; .*zzz"):
        measurements._named_pattern("zzz", 2, 3)
    with pytest.raises(ValueError, match="D0-W") as told:
        measurements._named_pattern("D0-W", 2, 3)
    assert "; " not in str(told.value) or "pattern=" not in str(told.value)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ([], {"batches": (8,), "contexts": (512,), "repeats": 12, "budget_s": 60.0}),
        (["--batch", "3", "--context", "64,128", "--repeats", "5", "--budget", "2"],
         {"batches": (3,), "contexts": (64, 128), "repeats": 5, "budget_s": 2.0}),
    ],
)  # fmt: skip
def test_what_training_steps_are_timed_with(monkeypatch, words, settings):
    from ratplus.bench import train

    given, made = [], []
    monkeypatch.setattr(measurements, "_subject", lambda name, *rest: made.append(name) or name)
    monkeypatch.setattr(train, "check_training", given.append)
    monkeypatch.setattr(train, "bench_training", lambda subjects, settings, **more: (subjects, settings, more))
    arguments = cli.parser_of("bench").parse_intermixed_args(["train", "--device", "cpu", *words])
    work = measurements.prepare_training([], arguments)
    assert made == ["ratplus_tiny", "attention_tiny"]
    assert {key: getattr(given[0], key) for key in settings} == settings
    assert work("p", "s") == (made, given[0], {"progress": "p", "save": "s"})
    measurements.prepare_training(["m"], arguments)
    assert made[2:] == ["m"]
    for option, value in (("--pattern", "D4"), ("--new-tokens", "3"), ("--memory-gb", "1"), ("--prefill-tokens", "5")):
        wrong = cli.parser_of("bench").parse_intermixed_args(["train", option, value])
        with pytest.raises(ValueError, match=f"^{option}: is for `ratplus bench model`, not train$"):
            measurements.prepare_training([], wrong)


def test_what_models_are_timed_with(monkeypatch):
    from ratplus.bench import models

    made: list = []
    monkeypatch.setattr(measurements, "_subject", lambda name, settings, vocab: made.append((name, vocab)) or name)
    monkeypatch.setattr(models, "check", lambda *words: made.append(words))
    monkeypatch.setattr(models, "bench_models", lambda *words, **more: (*words, more))
    arguments = cli.parser_of("bench").parse_intermixed_args(["model", "--device", "cpu", "--vocab-size", "9"])
    work = measurements.prepare_models(["a", "b"], arguments)
    settings = made[2][1]
    assert made == [("a", 9), ("b", 9), (["a", "b"], settings)]
    assert work("p", "s") == (["a", "b"], settings, {"progress": "p", "save": "s"})
    with pytest.raises(ValueError, match="^bench model: give one or more models: "):
        measurements.prepare_models([], arguments)


def test_what_kernels_are_timed_with(monkeypatch):
    from ratplus.kernels.bench import cases, timing
    from ratplus.kernels.bench import run as running

    monkeypatch.setattr(timing, "check_device", lambda device: None)
    monkeypatch.setattr(running, "bench_ops", lambda shapes, **more: (shapes, more))

    def timed(*words):
        arguments = cli.parser_of("bench").parse_intermixed_args(["kernels", *words])
        return measurements.prepare_kernels([], arguments)("p", "s")

    for device, shapes in (("cpu", cases.CPU_SHAPES), ("cuda", cases.Shapes())):
        assert timed("--device", device)[0] == shapes
        own = replace(shapes, repeats=5, budget_s=2.0)
        assert timed("--device", device, "--repeats", "5", "--budget", "2")[0] == own
    more = timed("--device", "cpu", "--threads", "3", "--seconds", "4")[1]
    assert more == {"threads": 3, "seconds": 4.0, "progress": "p", "save": "s"}
    with pytest.raises(
        ValueError, match="^bench kernels: takes no models, got m; models are for `ratplus bench model`"
    ):
        measurements.prepare_kernels(["m"], cli.parser_of("bench").parse_intermixed_args(["kernels"]))
