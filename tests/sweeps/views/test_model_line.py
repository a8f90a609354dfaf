"""What is printed of a model that came in or went out."""

import json
from pathlib import Path

import pytest

from ratplus.config.model import ModelConfig
from ratplus.costs.budget import parameters
from ratplus.sweeps.views.model_line import model_line, tokenizer_words

SHAPE = {"vocab_size": 97, "layers": 3, "d_model": 64, "d_head": 16}


def test_the_line_of_a_model_of_the_paper_and_of_one_with_few_heads_of_keys():
    config = ModelConfig(**SHAPE, kv_heads=2)
    assert model_line(Path("m"), config, 1234, "1B") == (
        "m: the 1B shape of the paper, RAT+, 3 layers, d_model 64, 4 heads of 16 on 2 of keys, vocabulary 97: 1234 "
        "parameters, recurrence on"
    )
    plain = ModelConfig(**SHAPE, recurrence=False)
    assert model_line(Path("m"), plain) == (
        "m: attention without recurrence, 3 layers, d_model 64, 4 heads of 16, vocabulary 97: "
        f"{parameters(plain)} parameters, recurrence off"
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, []),
        ({"config.json": b"{}"}, []),
        ({"tokenizer.json": b"{}"}, ["data.tokenizer=m", "data.recall.fraction=0"]),
        ({"tokenizer.model": b""}, ["data.tokenizer=m", "data.recall.fraction=0"]),
        ({"tokenizer.json": json.dumps({"post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}},
        ]}}).encode()}, ["data.tokenizer=m", "data.bos=true", "data.recall.fraction=0"]),
    ],
)  # fmt: skip
def test_the_words_that_prepare_data_for_it(files, words):
    assert tokenizer_words(Path("m"), files) == words
