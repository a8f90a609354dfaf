"""The operator benchmark as a script for a GPU machine without the rest of the house: torch and Triton are enough.

`python -m ratplus.kernels.bench.gpu FILE [SECONDS]` writes FILE as JSON after every case, whole each time.
"""

import json
import sys
from pathlib import Path

from ratplus.kernels.bench.cases import Shapes
from ratplus.kernels.bench.run import bench_ops
from ratplus.records.atomic import write_atomically


def main(words: list[str], shapes: Shapes | None = None) -> None:
    """Measure on this machine's GPU and write the file that `words` names, within the seconds that it may name too.

    Raises ValueError for wrong words, and where there is no CUDA device.
    """
    if len(words) not in (1, 2):
        raise ValueError("usage: python -m ratplus.kernels.bench.gpu FILE [SECONDS]")
    seconds = None
    if len(words) == 2:
        try:
            seconds = float(words[1])
        except ValueError:
            raise ValueError(f"SECONDS: got {words[1]!r}; it must be a number") from None
    target = Path(words[0])
    target.parent.mkdir(parents=True, exist_ok=True)  # seen now rather than after the first case

    def save(result: dict) -> None:
        write_atomically(target, json.dumps(result, indent=1) + "\n")

    bench_ops(shapes or Shapes(), seconds=seconds, progress=lambda text: print(text, flush=True), save=save)
    print(target)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
