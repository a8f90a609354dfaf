"""Models whose mixer has a state: their folders, what exports refuse, and what can't be compiled."""

import pytest
import torch

from ratplus import ModelConfig, RATPlus
from ratplus.checkpoint import load, save
from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.hub import export_hf
from ratplus.checkpoint.official import export_official
from ratplus.config.run import TrainerSection
from ratplus.kernels.linear_attention import fused
from ratplus.training.blocks import blocks_configured, check_compiler
from ratplus.training.errors import LayoutError


def make(mixer: str) -> RATPlus:
    torch.manual_seed(0)
    return RATPlus(ModelConfig(31, 2, 24, 6, recurrence=False, mixer=mixer, d_state=4, query_heads=3, max_len=40))


@pytest.mark.parametrize("mixer", ["mamba2", "gated_deltanet"])
def test_a_model_folder_and_no_export(mixer, tmp_path):
    model, x = make(mixer), torch.arange(9)[None]
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.config == model.config
    assert torch.equal(again(x), model(x))
    with pytest.raises(CheckpointError, match=f"model.mixer={mixer} has no class in the file for transformers"):
        export_hf(tmp_path / "model", tmp_path / "hf")
    with pytest.raises(CheckpointError, match=f"no place for model.mixer={mixer}, and neither has --format hf"):
        export_official(tmp_path / "model", tmp_path / "official.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_kernels_of_others_are_not_compiled(monkeypatch):
    monkeypatch.setattr(fused, "HAS_FLA", True)
    trainer = TrainerSection(compile=True)
    with pytest.raises(LayoutError, match=r"model.mixer=mamba2 runs the kernels of fla-core.*RATPLUS_KERNELS=eager"):
        check_compiler(trainer, "cuda", "mamba2")
    monkeypatch.setenv("RATPLUS_KERNELS", "eager")
    monkeypatch.setattr("ratplus.training.blocks._has_triton", lambda: True)
    check_compiler(trainer, "cuda", "mamba2")


def test_blocks_in_chunks_are_compiled(monkeypatch):
    """As whole graphs, which a break in the operators would refuse."""
    monkeypatch.setattr("ratplus.training.blocks.BACKEND", "eager")
    for mixer in ("mamba2", "gated_deltanet"):
        model, x = make(mixer), torch.arange(20)[None]
        plain = model(x)
        with blocks_configured(model, TrainerSection(compile=True)):
            torch.testing.assert_close(model(x), plain)
