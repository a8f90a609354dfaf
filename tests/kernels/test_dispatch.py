"""Which implementation runs where, and what is said when the fast one can't."""

from types import SimpleNamespace

import pytest
import torch

from ratplus.kernels import dispatch


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch):
    monkeypatch.delenv("RATPLUS_KERNELS", raising=False)


def _on_cuda(dtype=torch.bfloat16):
    """Stands for a CUDA tensor: dispatch looks at nothing else."""
    return SimpleNamespace(device=torch.device("cuda"), dtype=dtype)


def test_cpu_tensors_take_the_eager_path():
    assert dispatch.implementation("gated_scan", 64, torch.zeros(1)) == "eager"


def test_cuda_tensors_take_the_fused_path(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    assert dispatch.implementation("gated_scan", 64, _on_cuda()) == "fused"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d_head", [16, 32, 64, 128, 256])
def test_every_size_and_type_that_the_kernels_take(monkeypatch, d_head, dtype):
    if d_head == 256 and dtype == torch.float32:
        return  # refused, below
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    for choice in ("", "fused"):
        monkeypatch.setenv("RATPLUS_KERNELS", choice)
        assert dispatch.implementation("gated_scan", d_head, _on_cuda(dtype)) == "fused"


def test_every_tensor_is_looked_at(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    with pytest.warns(UserWarning, match="dtype is torch.float64"):
        assert dispatch.implementation("gated_scan", 64, _on_cuda(), _on_cuda(torch.float64)) == "eager"


@pytest.mark.parametrize(
    ("d_head", "dtype", "reason"),
    [
        (24, torch.float32, "d_head is 24; the Triton kernels take 16, 32"),
        (64, torch.float64, "dtype is torch.float64"),
        (256, torch.float32, "d_head is 256 in float32; the Triton kernels take float32 up to 128"),
    ],
)
def test_an_unsupported_input_falls_back_with_a_warning(monkeypatch, d_head, dtype, reason):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    with pytest.warns(UserWarning, match=f"gated_scan runs on the slower eager path: .*{reason}"):
        assert dispatch.implementation("gated_scan", d_head, _on_cuda(dtype)) == "eager"


def test_the_warning_does_not_break_a_graph(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    tensor = _on_cuda()

    def double(x):
        assert dispatch.implementation("gated_scan", 24, tensor) == "eager"
        return 2 * x

    with pytest.warns(UserWarning, match="gated_scan runs on the slower eager path: d_head is 24"):
        assert torch.compile(double, fullgraph=True, backend="eager")(torch.ones(2)).tolist() == [2, 2]


def test_without_triton(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    with pytest.warns(UserWarning, match="Triton is not installed"):
        assert dispatch.implementation("gated_scan", 64, _on_cuda()) == "eager"
    monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    with pytest.raises(ValueError, match="RATPLUS_KERNELS=fused: gated_scan can't run .*: Triton is not installed"):
        dispatch.implementation("gated_scan", 64, _on_cuda())


@pytest.mark.parametrize("name", ["reference", "eager"])
def test_forced(monkeypatch, name):
    monkeypatch.setenv("RATPLUS_KERNELS", name)
    assert dispatch.implementation("gated_scan", 64, _on_cuda()) == name


@pytest.mark.parametrize("name", ["quick", "Fused", "EAGER", "eager ", "fuse"])
def test_unknown_name(monkeypatch, name):
    monkeypatch.setenv("RATPLUS_KERNELS", name)
    for tensor in (torch.zeros(1), _on_cuda()):
        with pytest.raises(
            ValueError, match=f"RATPLUS_KERNELS='{name}' is unknown: use one of reference, eager, fused"
        ):
            dispatch.implementation("gated_scan", 64, tensor)


@pytest.mark.parametrize("device", ["cpu", "mps", "meta"])
def test_without_the_interpreter_only_cuda_tensors_can_be_forced(monkeypatch, device):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    there = SimpleNamespace(device=torch.device(device), dtype=torch.float32)
    with pytest.raises(ValueError, match=f"the device is {device}; the Triton kernels need CUDA"):
        dispatch.implementation("gated_scan", 64, _on_cuda(torch.float32), there)
