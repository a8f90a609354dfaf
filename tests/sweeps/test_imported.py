"""An imported Llama-family model on the command line: its shape, vocabulary and context, and cells without training."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ratplus.checkpoint import load, save
from ratplus.checkpoint.adopt import adopt
from ratplus.checkpoint.facts import CheckpointError, default_patterns, family_of, read_facts
from ratplus.checkpoint.llama.weights import names_of
from ratplus.checkpoint.llama.words import read_llama
from ratplus.pattern import Pattern
from ratplus.stages.cell import Cell
from ratplus.stages.run_stage import Surroundings
from ratplus.sweeps import cli
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.manifest import plan_cells, planned_stages
from ratplus.sweeps.define.mistakes import UsageError

CONFIG = {
    "model_type": "mistral", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "sliding_window": 24, "tie_word_embeddings": True,
}  # fmt: skip
WORDS = [
    "data=text", "data.path=text.txt", "data.recall.fraction=0", "data.validation_fraction=0.3", "model.init_from=ours",
    "data.tokenizer=ours", "logger=none", "train.context=48", "train.adapt.steps=0", "eval.text_rows=4",
    "eval.recall_rows=0", "eval.cloze.items=0", "run.threads=1", "run.accelerator=cpu",
]  # fmt: skip


def write_theirs(folder: Path) -> None:
    """A folder as transformers writes it, with a byte-level tokenizer whose ids fill 258 of 300 rows."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    generator = torch.Generator().manual_seed(0)
    shapes = {k: v for parts in names_of(read_llama(CONFIG, "config.json").config).values() for k, v in parts.items()}
    save_file({k: 0.1 * torch.randn(shape, generator=generator) for k, shape in shapes.items()},
              folder / "model.safetensors")  # fmt: skip
    tokenizers = pytest.importorskip("tokenizers")
    letters = {letter: i for i, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("".join(f"Line {i} of a text that nobody reads.\n" for i in range(400)))
    Path("text2.txt").write_text("Another one.")
    write_theirs(Path("theirs"))
    assert ratplus("import", "theirs", "ours") == 0
    return tmp_path


def ratplus(*words) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return ended.value.code or 0


def refused(capsys, *words) -> str:
    capsys.readouterr()
    assert ratplus("sweep", *WORDS, *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_the_folder_gives_shape_and_vocabulary(place, capsys):
    composed = compose_one(WORDS)
    model = composed.config.model
    assert (model.name, model.layers, model.d_head, model.query_heads, model.kv_heads) == ("ours", 2, 8, 6, 2)
    assert (model.ffn, model.ffn_size, model.recurrence, model.output_gate) == ("swiglu", 44, False, False)
    assert compose_one([*WORDS, "model.name=mine"]).config.model.name == "mine"
    (entry,) = plan_cells([composed])
    assert entry["config"]["model"]["vocab_size"] == 300  # of which the tokenizer fills 258
    again = planned_stages(composed.config, entry["corpus"], 300)
    assert {stage.name: stage.id for stage in again} == entry["stages"]

    record = Cell(composed.config, Surroundings(Path("out"))).run("evaluate")
    assert 4 < record["metrics"]["loss"]["value"] < 8
    pretrain, adapt = (next(Path("out", stage).iterdir()) for stage in ("pretrain", "adapt"))
    assert (adapt / "model.safetensors").samefile("ours/model.safetensors")  # no copy a pattern
    assert (pretrain / "model.safetensors").samefile("ours/model.safetensors")
    assert load(adapt).config.max_len == 48
    # What is known of the model beside its weights goes along: a cell can start from the stage as from the folder.
    assert (family_of(pretrain), family_of(adapt)) == ("mistral", "mistral")
    assert (default_patterns(pretrain).label, default_patterns(adapt).label) == ("stream-W23", "D1")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (adapt / name).samefile(Path("ours", name))
    (again,) = plan_cells([compose_one([*WORDS, f"model.init_from={adapt}", "data.tokenizer=" + str(adapt)])])
    assert again["config"]["model"]["vocab_size"] == 300


def test_what_does_not_fit_an_imported_model(place, capsys):
    told = "the model has a vocabulary of 300 (its tokenizer 258 ids), the data one of 257; use data.tokenizer=ours"
    assert told in refused(capsys, "data.tokenizer=bytes")
    told = refused(capsys, "train.context=96")
    assert "train.context=96: model.init_from=ours takes at most 64 tokens; use fewer, or ask for RoPE scaling" in told
    assert "model.rope_scaling=yarn model.rope_factor=1.5 model.rope_original=64" in told
    assert "the model there has another shape" in refused(capsys, "model=attention_tiny")
    assert "or leave out model=..., and the shape is the folder's" in refused(capsys, "model=attention_tiny")
    assert "(model.kv_heads=2), so they must have the same pattern" in (
        refused(capsys, "pattern.dilation=[1,2,4,1,2,4]", "pattern.over=heads")
    )
    assert "model.layers=2 (not 3)" in refused(capsys, "model.layers=3")
    yarn = ["train.context=96", "model.rope_scaling=yarn", "model.rope_factor=1.5", "model.rope_original=64"]
    assert compose_one([*WORDS, *yarn]).config.model.rope_low is None
    plan_cells([compose_one([*WORDS, *yarn])])
    with pytest.raises(UsageError, match=r"model\.kv_heads: got 5"):
        compose_one([*WORDS, "model.kv_heads=5"])


def test_texts_begin_with_the_models_token(place, capsys):
    """data.bos: in the corpus, in prompts, and in what an evaluation scores; never in what is scored or answered."""
    from ratplus.data.sft import answer_ids
    from ratplus.data.sources import corpus_of
    from ratplus.evaluation.harness_model import Adapter

    plain, begun = (corpus_of(compose_one([*WORDS, *more]).config.data) for more in ([], ["data.bos=true"]))
    assert list(begun.train[:1]) + list(begun.train[-1:]) == [256, 257]
    assert list(begun.train[1:20]) == list(plain.train[:19])
    assert "bos_id" not in plain.manifest["tokenizer"]
    tokenizer = begun.tokenizer()
    ids = tokenizer.encode("ab")
    assert ids[0] == 256
    assert tokenizer.decode(ids) == "ab"
    assert answer_ids(tokenizer, "ab", ids, " c") == plain.tokenizer().encode(" c")
    harness = Adapter(load("ours"), tokenizer)
    assert harness.encode_pair("ab", " c") == (ids, plain.tokenizer().encode(" c"))
    assert harness.encode_pair("", "c") == ([256], plain.tokenizer().encode("c"))
    for word, told in (("data.bos=false", "data.bos: got False"), ("data.bos=no_such", "has no token 'no_such'"),
                       ("data.bos=999", "id 999 is not among the 258 ids")):  # fmt: skip
        assert told in refused(capsys, word)


RETROFIT = [
    "model.recurrence=true", "train=retrofit", "train.precision=float32", "train.adapt.steps=2", "train.adapt.batch=2",
    "train.adapt.micro_batch=null", "train.adapt.arl_dilation=8",
]  # fmt: skip


def of_words(*words):
    return compose_one([*WORDS, *words])


def test_a_recurrence_beside_the_models_weights(place):
    """Gates that barely open: at first the model is nearly what it was, and with closed ones exactly."""
    closed, composed = of_words("model.recurrence=true", "model.gate_bias=-40"), of_words("model.recurrence=true")
    assert (composed.config.model.name, composed.config.model.gate_bias) == ("ours-retrofit", -2.0)
    logits = {}
    for name, one in (("plain", of_words()), ("closed", closed), ("open", composed)):
        cell = Cell(one.config, Surroundings(Path("out")))
        record = cell.run("adapt")
        folder = cell.plan.adapt.folder(Path("out"))
        assert read_facts(folder)[1] == record["weights_sha256"]
        model = load(folder)
        tokens = torch.arange(40)[None] % 258
        with torch.no_grad():
            logits[name] = model(tokens)
    assert torch.allclose(logits["closed"], logits["plain"], atol=1e-5)
    assert 1e-3 < (logits["open"] - logits["plain"]).abs().max() < 1
    weights, theirs = model.state_dict(), load("ours").state_dict()
    matrix = weights["layers.0.mixer.in_proj.weight"]
    assert torch.equal(matrix[:-16], theirs["layers.0.mixer.in_proj.weight"])
    assert matrix[-16:].eq(0).all()
    assert weights["layers.1.mixer.gate_bias"].eq(-2).all()
    same = [k for k in theirs if not k.endswith("in_proj.weight")]
    assert all(torch.equal(weights[k], theirs[k]) for k in same)
    # The gates learn from there, though their matrix is 0.
    model(tokens, Pattern(8)).square().mean().backward()
    assert model.blocks[0].mixer.in_proj.weight.grad[-16:].abs().max() > 0


def test_retrofit_and_its_control(place):
    """One adaptation serves all patterns; the control reads the same rows in the same passes, without gates."""
    plans = {
        (recurrence, pattern): of_words(*RETROFIT, f"model.recurrence={recurrence}", f"pattern.dilation={pattern}")
        for recurrence in ("true", "false") for pattern in (1, 8)
    }  # fmt: skip
    cells = {k: Cell(c.config, Surroundings(Path("out"))) for k, c in plans.items()}
    assert len({cell.plan.adapt.id for cell in cells.values()}) == 2
    assert len({cell.plan.evaluate.id for cell in cells.values()}) == 4
    retrofit, control = (cells[word, 8].plan.adapt.config["recipe"] for word in ("true", "false"))
    assert {k: v for k, v in retrofit.items() if k not in control} == {"gate_lr": 3e-3, "gate_bias_lr": 1e-2}
    assert control == {k: v for k, v in retrofit.items() if k in control}
    for cell in cells.values():
        assert cell.run()["metrics"]["loss"]["value"] > 0
    folder = cells["true", 8].plan.adapt.folder(Path("out"))
    assert "arl_loss" in (folder / "curve.csv").read_text()
    model = load(folder)
    moved = (model.blocks[0].mixer.gate_bias.detach() + 2).abs()
    assert 1e-3 < moved.max() < 3e-2  # two steps of two passes at about 1e-2, not at 3e-4


def test_what_cannot_get_a_recurrence(place, capsys):
    told = refused(capsys, "model.recurrence=true", "model.gate_bias=null")
    assert "has none, and gates without a bias would start half open" in told
    assert "such as model.gate_bias=-2" in told
    told = refused(capsys, "model.recurrence=true", "model.layers=3")
    assert "it needs model.layers=2 (not 3)" in told
    assert "model.gate_bias: got -2.0; only a model with recurrence has one" in refused(capsys, "model.gate_bias=-2.0")


def test_plan_takes_the_models_vocabulary(place, capsys):
    """Without --vocab: that of the tokenizer beside it. Memory is that of the stage that trains."""
    assert ratplus("plan", *WORDS, "--vocab", "320") == 2
    assert "the model has a vocabulary of 300 (its tokenizer 258 ids), the data one of 320" in capsys.readouterr().err
    words = [w for w in WORDS if not w.startswith("train.adapt")]
    assert (
        ratplus("plan", *words, *RETROFIT[:1], "train=retrofit", "train.context=48", "train.adapt.micro_batch=2") == 0
    )
    told = capsys.readouterr().out
    assert "vocabulary 300" in told
    assert "2 sequences at a time" in told
    assert told.count("memory of each GPU in training") == 1
    assert ratplus("plan", *WORDS) == 0  # which trains nothing
    assert "memory of each GPU" not in capsys.readouterr().out


def test_generate_takes_the_models_own_tokenizer_and_pattern(place, capsys):
    assert ratplus("generate", "model=ours", "prompt=Some text", "max_new_tokens=3", "temperature=0") == 0
    assert "--- stream-W23 ---" in capsys.readouterr().out
    assert ratplus("generate", "model=ours", "prompt=Some text", "max_new_tokens=3", "pattern=D1,D4") == 0
    assert "--- D4 ---" in capsys.readouterr().out


def test_words_of_import(place, capsys, monkeypatch):
    assert ratplus("import", "theirs", "again") == 0
    told = capsys.readouterr().out
    assert "its own pattern, with which it was trained: stream-W23" in told
    assert "use it with: model.init_from=again data.tokenizer=again data.bos=true data.recall.fraction=0" in told

    def line(*words) -> str:
        assert ratplus("import", *words) == 2
        (told,) = capsys.readouterr().err.strip().splitlines()
        return told

    assert "--max-len: got 128" in line("theirs", "long", "--max-len", "128")
    assert "--d-head: got 8; theirs is a folder" in line("theirs", "other", "--d-head", "8")
    assert "--revision: got main; theirs is no name of the hub" in line("theirs", "other", "--revision", "main")
    assert not Path("long").exists()
    assert not Path("other").exists()

    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision))
        if name == "some/model":
            return str(place / "theirs")
        raise OSError("401: no such repository\nsecond line")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert ratplus("import", "some/model", "fetched", "--revision", "v1") == 0
    assert Path("fetched/model.safetensors").read_bytes() == Path("ours/model.safetensors").read_bytes()
    capsys.readouterr()
    assert "some/other: no such folder here, and the Hugging Face hub has no such model" in line("some/other", "x")
    assert asked == [("some/model", "v1"), ("some/other", None)]


@pytest.mark.slow
def test_sharded_ranks_adapt_it_as_one_process_does(place):
    trained = []
    for trainer in (["trainer=single"], ["trainer=fsdp", "trainer.devices=2"]):
        output = trainer[0].partition("=")[2]
        words = ["train.adapt.steps=4", "train.adapt.batch=4", "train.precision=float32", "pattern=dilated"]
        assert ratplus("adapt", *WORDS, *words, *trainer, f"output={output}") == 0
        (weights,) = Path(output).glob("adapt/*/model.safetensors")
        trained.append(load_file(weights))
    before = load_file("ours/model.safetensors")
    assert set(trained[0]) == set(trained[1]) == set(before)
    for name, alone in trained[0].items():
        assert torch.allclose(trained[1][name], alone, atol=2e-5), name
    assert max((alone - before[name]).abs().max() for name, alone in trained[0].items()) > 1e-3


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(place, capsys, number):
    path = Path("theirs/model.safetensors")
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = number
    save_file(weights, path)
    assert ratplus("import", "theirs", "new") == 2
    line = "ffn.up.weight holds NaN or infinite numbers (1 of 2,816), so its model answers nothing; take an undamaged"
    assert line in capsys.readouterr().err
    assert not list(Path("new").glob("model*"))
    # A model folder that something else wrote.
    model = load("ours")
    with torch.no_grad():
        model.state_dict()["layers.1.ffn.up.weight"][3, 5] = number
    save(model, "odd")
    with pytest.raises(CheckpointError, match=r"model\.init_from=odd: layers\.1\.ffn\.up\.weight holds NaN"):
        adopt(Path("odd"), Path("stage"), model.config, read_facts("odd")[1])
    assert not Path("stage").exists()
