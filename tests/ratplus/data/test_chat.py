"""Chat templates: the same text and ids as transformers makes of them, and one line for what cannot be rendered."""

import json

import pytest

from ratplus.data.chat import ChatError, prompt_of
from ratplus.data.tokenizer import ByteTokenizer, load_tokenizer
from ratplus.sweeps import cli

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system
Help.<|im_end|>
{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
MARKS = """{{ bos_token }}{% for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}{% continue %}{% endif %}
    [INST] {{ message.content | trim }} [/INST]{{ {'n': message.content} | tojson }}
{% endfor %}{{ eos_token if messages | length > 9 }}{% if tools is not none %}tools{% endif %}"""
ONE = [{"role": "user", "content": " Is 1 < 2 & <|im_end|>?\n"}]
TWO = [{"role": "system", "content": "Grüße"}, *ONE]


@pytest.fixture
def folder(tmp_path):
    """A tokenizer of bytes with the marks of a chat."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = {letter: i for i, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
    return tmp_path


@pytest.mark.parametrize("template", [CHATML, MARKS])
@pytest.mark.parametrize("messages", [ONE, TWO])
@pytest.mark.parametrize("place", ["file", "word", "named"])
def test_texts_and_ids_of_transformers(folder, template, messages, place):
    transformers = pytest.importorskip("transformers")
    if place == "file":
        (folder / "chat_template.jinja").write_text(template)
    else:
        words = json.loads((folder / "tokenizer_config.json").read_text())
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
        words["chat_template"] = template if place == "word" else named
        (folder / "tokenizer_config.json").write_text(json.dumps(words))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    how = {"add_generation_prompt": True, "tokenize": False}
    assert prompt_of(folder, messages) == theirs.apply_chat_template(messages, **how)
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat(messages) == ids
    assert 257 in ids
    assert 257 not in tokenizer.encode("<|im_end|>")  # in a plain prompt these are characters


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('roles must alternate') }}", "its chat template fails (roles must alternate)"),
        ("{% for", "its chat template fails"),
        ("{{ messages.x.y }}", "its chat template fails"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "its chat template fails"),
        ("{% set _ = messages.append(1) %}", "its chat template fails"),
        ("{{ 'x' * 100000 * 100000 }}", "its chat template fails (a product or power of more than"),
        ("{{ 9 ** 9 }}", "a product or power"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
            "more than 16,777,216",
        ),
    ],
)
def test_templates_that_fail_or_do_harm(folder, template, told):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ChatError) as caught:
        prompt_of(folder, ONE)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_without_a_template(folder):
    with pytest.raises(ChatError, match=r"the model has no chat template \(chat_template\.jinja\); prompt it without"):
        load_tokenizer(folder).chat(ONE)
    with pytest.raises(ChatError, match="the model reads bytes and has no chat template"):
        ByteTokenizer().chat(ONE)


def test_generate_with_a_chat(folder, capsys):
    from ratplus import ModelConfig, RATPlus
    from ratplus.checkpoint import save

    def generate(*words: str):
        with pytest.raises(SystemExit) as ended:
            cli.main(["generate", f"model={folder}", "prompt=Hello", "max_new_tokens=8", "temperature=0", *words])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    (folder / "generation_config.json").write_text('{"eos_token_id": [256, 257]}')
    tokenizer = load_tokenizer(folder)
    assert tokenizer.stop_ids() == {256, 257}
    model = RATPlus(ModelConfig(258, 1, 32, 16, max_len=256))
    save(model, folder, tokenizer)
    code, _, err = generate("chat=true")
    assert (code, "has no chat template" in err, err.count("\n")) == (2, True, 1)
    (folder / "chat_template.jinja").write_text(CHATML)
    code, out, _ = generate("chat=true", "system=Be brief.")
    assert code == 0
    assert out.startswith("--- D1 ---\nHello\n\n")
    prompt = tokenizer.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    count = int(out.partition("[")[2].partition(" tokens")[0])
    assert f"of {len(prompt) + count - 1} entries a head" in out
    for words, told in ((["chat=yes"], "chat: got 'yes'; allowed: true, false"),
                        (["system=x"], "only chat=true has a system's message")):  # fmt: skip
        code, _, err = generate(*words)
        assert (code, told in err) == (2, True)
