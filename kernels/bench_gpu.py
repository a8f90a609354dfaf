"""The operator benchmark as a script for a GPU machine without the rest of the house: torch and Triton are enough.

`python -m ratplus.kernels.bench_gpu FILE [SECONDS]` writes FILE as JSON after every case, whole each time.
"""

import json
import sys
from pathlib import Path

from ratplus.kernels.bench import bench_ops
from ratplus.kernels.bench_cases import Shapes


def bench_gpu_ops(shapes: Shapes | None = None, **options) -> dict:
    """`bench_ops` of the paper's shapes on CUDA; the options are its."""
    return bench_ops(shapes or Shapes(), **options)


def main(words: list[str], shapes: Shapes | None = None) -> None:
    """Measure on this machine's GPU and write the file that `words` names, within the seconds that it may name too.

    Raises ValueError for wrong words, and where there is no CUDA device.
    """
    if len(words) not in (1, 2):
        raise ValueError("usage: python -m ratplus.kernels.bench_gpu FILE [SECONDS]")
    seconds = None
    if len(words) == 2:
        try:
            seconds = float(words[1])
        except ValueError:
            raise ValueError(f"SECONDS: got {words[1]!r}; it must be a number") from None
    target = Path(words[0])
    target.parent.mkdir(parents=True, exist_ok=True)

    def save(result: dict) -> None:
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(target)

    bench_gpu_ops(shapes, seconds=seconds, progress=lambda text: print(text, flush=True), save=save)
    print(target)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
