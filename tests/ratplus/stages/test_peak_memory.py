"""The peak of memory in a stage's record: of the stage alone on a GPU, named as the process's elsewhere."""

import numpy as np
import pytest
import torch

from ratplus.stages.peak_memory import peak_memory, reset_gpu_peak


class Allocator:
    """torch.cuda's peak counter: 900 bytes were held before, then whatever the test holds."""

    def __init__(self, monkeypatch):
        self.peak = 900
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: self.hold(0, forget=True))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: self.peak)

    def hold(self, size: int, forget: bool = False) -> None:
        self.peak = size if forget else max(self.peak, size)


def test_each_stage_has_its_own_peak_on_a_gpu(monkeypatch):
    allocator = Allocator(monkeypatch)
    found = []
    for size in (500, 100):
        reset_gpu_peak("cuda")
        allocator.hold(size)
        found.append(peak_memory("cuda")["peak_gpu_memory_bytes"])
    assert found == [500, 100]


def test_on_a_cpu_it_is_named_as_the_processs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: pytest.fail("asked for a GPU"))
    reset_gpu_peak("cpu")
    before = peak_memory("cpu")
    assert set(before) == {"process_peak_memory_bytes"}
    held = np.ones(before["process_peak_memory_bytes"] // 8 + 50_000_000 // 8)
    assert peak_memory("cpu")["process_peak_memory_bytes"] > before["process_peak_memory_bytes"] + 50_000_000 - 8
    assert held.nbytes > 50_000_000


@pytest.mark.gpu
def test_a_later_stage_does_not_repeat_the_peak_of_an_earlier_one():
    found = []
    for megabytes in (256, 16):
        reset_gpu_peak("cuda")
        tensor = torch.zeros(megabytes, 1 << 20, dtype=torch.uint8, device="cuda")
        found.append(peak_memory("cuda")["peak_gpu_memory_bytes"])
        del tensor
    assert found[0] - found[1] == 240 << 20
