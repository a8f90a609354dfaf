"""Which of torch's kernels dense attention runs on, so that "as fast as dense" means the faster one, by name."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


@contextmanager
def dense_on(name: str | None) -> Generator[None]:
    """Within, torch's dense attention runs on this kernel alone; None leaves the choice to torch."""
    if name is None:
        yield
    else:
        with sdpa_kernel(BACKENDS[name]):
            yield


def usable(run: Callable[[], object], names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Those of the kernels on which `run` runs here, and why the others don't, in a line."""
    working, refused = [], {}
    for name in names:
        try:
            with dense_on(name):
                run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            refused[name] = str(error).splitlines()[0]
        else:
            working.append(name)
    return working, refused


def cudnn_version() -> str | None:
    """As 9.13.0; None without cuDNN."""
    found = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    if found is None:
        return None
    major, rest = divmod(found, 10000 if found >= 90000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"
