"""`ratplus plan`: what a sweep would cost, from its config alone. It needs no data, no weights and no GPU."""

from __future__ import annotations

import argparse

from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.verbs import add_overrides

HELP = "say what a sweep would cost: parameters, tokens, FLOPs, GPU-hours, memory; runs nothing"
EXAMPLES = [
    "ratplus plan experiment=demo",
    "ratplus plan model=ratplus_7b train=paper_7b sweep=paper_dilation data.recall.fraction=0 \\\n"
    "      trainer=fsdp trainer.devices=8 trainer.nodes=4 --vocab 32000",
    "ratplus plan experiment=retrofit_135m model.init_from=models/smollm2 data.tokenizer=models/smollm2",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument("-m", "--multirun", action="store_true", help="several values make several cells (always)")
    parser.add_argument("--vocab", type=int, help="tokens of the text's vocabulary (default: the imported "
                        "model's of model.init_from, else 257, bytes)")  # fmt: skip
    parser.add_argument("--mfu", type=float, default=0.4, help="fraction of the peak that is reached (0.4)")
    parser.add_argument("--tflops", type=float, default=989.0, help="peak of a GPU in bf16 (989: H100)")
    parser.add_argument("--tokens-per-second", type=float, help="of a GPU, instead of --mfu and --tflops")


def run(arguments: argparse.Namespace) -> int:
    for name, value in (("--mfu", arguments.mfu), ("--tflops", arguments.tflops), ("--vocab", arguments.vocab),
                        ("--tokens-per-second", arguments.tokens_per_second)):  # fmt: skip
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{name}: got {value:g}; it must be > 0")
    if arguments.mfu > 1:
        raise UsageError(f"--mfu: got {arguments.mfu:g}; it is a fraction of --tflops: at most 1")
    from ratplus.sweeps.define.compose import compose_cells
    from ratplus.sweeps.views.cost_plan import Throughput, print_costs

    cells = compose_cells(arguments.overrides, arguments.config_dir)
    print_costs(cells, arguments.vocab, Throughput(arguments.mfu, arguments.tflops, arguments.tokens_per_second))
    return 0
