"""`ratplus generate`: text from a model folder under several patterns, and one line for each mistake."""

import pytest
import torch

from ratplus import ModelConfig, RATPlus
from ratplus.checkpoint import save
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.model.generate import stream
from ratplus.sweeps import cli
from ratplus.sweeps.verbs import generate as verb


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = ModelConfig(vocab_size=257, layers=2, d_model=32, d_head=16, max_len=64)
    torch.manual_seed(0)
    model = RATPlus(config)
    return model, save(model, tmp_path_factory.mktemp("models") / "small", ByteTokenizer())


def generate(capfd, *words) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["generate", *words])
    out, err = capfd.readouterr()
    return ended.value.code or 0, out, err


def test_patterns_side_by_side(capfd, model):
    words = ["prompt=Hello", "pattern=D1,layers[D1,D4],stream-W4-I2", "max_new_tokens=20", "temperature=0"]
    code, out, _ = generate(capfd, f"model={model[1]}", *words)
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("---")] == [
        "--- D1 ---", "--- layers[D1,D4] ---", "--- stream-W4-I2 ---"
    ]  # fmt: skip
    # 5 prompt tokens and 19 that were fed back; keys and values of 2 layers x 2 heads x 16 channels, and the state.
    assert f"cache: 24 of 24 entries a head, {24 * 2 * 4 * 16 * 4 + 2 * 4 * 16 * 4:,} bytes]" in out
    assert "cache: 6 of 24 entries a head" in out
    assert out.count("tokens/s") == 3


def test_a_text_may_fill_the_context_to_its_end(capfd, model):
    """The last new token is never fed back, so 5 tokens of a prompt leave room for 60 in a context of 64."""
    words = [f"model={model[1]}", "prompt=Hello", "temperature=0"]
    for more in ("max_new_tokens=60",), ():  # what is not asked for takes as many as there are
        code, out, _ = generate(capfd, *words, *more)
        assert code == 0
        assert "[60 tokens, " in out
        assert "cache: 64 of 64 entries a head" in out
    code, _, err = generate(capfd, *words, "max_new_tokens=61")
    assert code == 2
    assert "got 61; after a prompt of 5 tokens the model's context of 64 leaves 60" in err


def test_stream_is_generate(model):
    prompts = [[1, 2, 3], [4]]
    for options in ({}, {"temperature": 0.7, "seed": 3}, {"stop_token": 7}):
        steps = list(stream(model[0], prompts, None, 9, **options))
        assert torch.equal(torch.stack(steps, dim=1), model[0].generate(prompts, None, 9, **options))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompt=x"], "model= is missing; give a model folder, or the id of a trained stage"),
        (["model=MODEL"], "prompt= is missing"),
        (["mdel=x"], "did you mean model=?"),
        (["hello"], "give key=value; keys: model, prompt, pattern"),
        (["model=nowhere", "prompt=x"], "model=nowhere: no such folder, and not an id of a stage"),
        (["model=MODEL", "prompt=x", "pattern=Q3"], "pattern 'Q3': not a label"),
        (["model=MODEL", "prompt=x", "pattern=layers[D1,D2,D4]"], "names 3 layers, but the model has 2"),
        (["model=MODEL", "prompt=x", "max_new_tokens=65"], "after a prompt of 1 tokens the model's context of 64"),
        (["model=MODEL", "prompt=x", "max_new_tokens=many"], "max_new_tokens: got 'many'; it must be a whole number"),
        (["model=MODEL", "prompt=x", "top_p=2"], "top_p: got 2.0; it must be in (0, 1]"),
        (["model=MODEL", "prompt=x", "tokenizer=nowhere.json"], "nowhere.json"),
    ],
)
def test_mistakes(capfd, model, words, message):
    code, _, err = generate(capfd, *(word.replace("MODEL", str(model[1])) for word in words))
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_terminal_obeys_nothing_that_a_model_says(monkeypatch, capsys):
    class Evil:
        eos_id = 256

        def decode(self, ids):
            return "\x1b]52;c;Y3Vy\x07ok"[: len(ids)]

    monkeypatch.setattr("ratplus.model.generate.stream", lambda *_, **__: iter(range(13)))
    request = verb.parse(["model=m", "prompt=> "])
    verb._stream(None, Evil(), [1], None, request)
    assert capsys.readouterr().out == "> \x1b]52;c;Y3Vy\x07ok"[: 2 + 13]  # a file gets what the model said
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    verb._stream(None, Evil(), [1], None, request)
    assert capsys.readouterr().out == "> \\x1b]52;c;Y3Vy\\x07o"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_model_of_nan_is_told(temperature):
    model = RATPlus(ModelConfig(vocab_size=257, layers=1, d_model=32, d_head=16, max_len=64))
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="logits are not finite"):
        list(stream(model, [[1, 2]], max_new_tokens=3, temperature=temperature))


class Words:
    """A tokenizer whose every id is one letter, or half of one."""

    eos_id = 256

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")

    def chat(self, messages):
        return [(message["role"], message["content"]) for message in messages]

    def stop_ids(self):
        return {ord("!")}


def request(**keys):
    return verb.parse([f"{key}={value}" for key, value in ({"model": "m", "prompt": "ab"} | keys).items()])


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        ({}, [97, 98]), ({"prompt": ""}, [256]), ({"chat": "true"}, [("user", "ab")]),
        ({"chat": "true", "prompt": ""}, [("user", "")]),
        ({"chat": "true", "system": "be"}, [("system", "be"), ("user", "ab")]),
    ],
)  # fmt: skip
def test_what_a_model_is_given(keys, ids):
    """A text is continued; without any, what begins one is."""
    assert verb._prompt_ids(request(**keys), Words()) == ids


@pytest.mark.parametrize(
    ("keys", "tokens", "printed", "count"),
    [
        ({}, b"xyz", "abxyz", 3),
        ({}, b"x!z", "abx!z", 3),
        ({"chat": "true"}, b"x!z", "ab\n\nx!", 2),
        ({}, "é".encode() + b"x", "abéx", 3),
        ({}, b"\xc3", "ab", 1),  # half a character is not printed
        ({}, b"", "ab", 0),
    ],
)
def test_a_text_as_it_comes(monkeypatch, capsys, keys, tokens, printed, count):
    monkeypatch.setattr("ratplus.model.generate.stream", lambda *a, **k: iter([torch.tensor(t) for t in tokens]))
    asked = request(**keys)
    made, seconds = verb._stream(None, Words(), [1], None, asked)
    assert (capsys.readouterr().out, made) == (printed, count)
    assert seconds >= 0
