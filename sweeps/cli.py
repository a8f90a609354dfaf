"""The command line: `ratplus <verb> [overrides]`. Verbs import what they need when they run, so --help stays light."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

VERBS = {
    "sweep": "run a grid of cells: pretrain once a model, adapt and evaluate every pattern, write the report",
    "pretrain": "make sure of the pretraining of a cell",
    "adapt": "... and of its adaptation to a pattern",
    "sft": "... and of its fine-tuning on needles, where train.sft has steps",
    "evaluate": "... and of its evaluation: all stages of one cell",
    "plan": "say what a sweep would cost: parameters, tokens, FLOPs, GPU-hours, memory; runs nothing",
    "generate": "continue a prompt with a trained model, under one or several patterns",
    "status": "show which cells of a sweep folder are done, running, failed or missing",
    "show": "print a stage's record, and the command that reproduces it",
    "report": "write the tables, figures and page of a sweep folder; of two, how they differ",
    "sync": "send a sweep to W&B, rebuilt from its records; only what is missing there",
    "bench": "time the operators (kernels) or whole models (model) under several patterns",
    "prepare": "tokenize a corpus and check it",
    "import": "convert a checkpoint of the reference implementation into a model folder",
    "export": "write a model folder in the reference layout or as a Hugging Face-style folder",
}

_OVERRIDES = "Hydra overrides: group=choice, key=value; with -m also a,b,c, range(), glob(*)"
_RUN_EXAMPLES = {
    "sweep": [
        "ratplus sweep experiment=smoke",
        "ratplus sweep -m experiment=demo 'pattern=glob(*)' model=attention_tiny,ratplus_tiny",
        "ratplus sweep -m pattern.dilation=1,2,4,8,16,32,64 pattern.window=0,64",
    ],
    "pretrain": ["ratplus pretrain model=ratplus_tiny train.pretrain.steps=200"],
    "adapt": ["ratplus adapt model=ratplus_tiny pattern=dilated pattern.dilation=32"],
    "sft": [
        "ratplus sft model=ratplus_tiny train.sft.steps=200 'train.sft.tasks=[niah_single_1]' train.sft.template=short"
    ],
    "evaluate": ["ratplus evaluate model=ratplus_tiny pattern=streaming", "ratplus evaluate -m 'pattern=glob(*)'"],
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script; exits with 0, 1 (a cell failed), 2 (a mistake) or 128 + signal."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        from ratplus import __version__

        print(f"ratplus {__version__}")
        sys.exit(0)
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        import difflib

        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(VERBS)}"
        _fail(f"{verb}: no such command; {hint}")
    arguments = _parser(verb).parse_intermixed_args(rest)
    try:
        code = import_module("ratplus.sweeps.commands").run(verb, arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except ValueError as error:
        # What users can mend is a ValueError of one line, by the house's rule.
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    sys.exit(code)


def _usage() -> str:
    lines = ["usage: ratplus <command> [overrides]", ""]
    lines += [f"  {verb:<9} {text}" for verb, text in VERBS.items()]
    return "\n".join([*lines, "", "ratplus <command> --help shows an example of each."])


def _parser(verb: str) -> argparse.ArgumentParser:
    examples = (
        _RUN_EXAMPLES.get(verb)
        or {
            "status": ["ratplus status outputs/demo", "ratplus status outputs/demo --watch"],
            "plan": [
                "ratplus plan experiment=demo",
                "ratplus plan model=ratplus_7b train=paper_7b sweep=paper_dilation data.recall.fraction=0 \\\n"
                "      trainer=fsdp trainer.devices=8 trainer.nodes=4 --vocab 32000",
            ],
            "generate": [
                "ratplus generate model=outputs/demo/pretrain/a12949d9c432 prompt='Return the' pattern=D1,D16"
            ],
            "show": ["ratplus show 7392564b", "ratplus show 7392564b outputs/demo --json"],
            "report": [
                "ratplus report outputs/demo",
                "ratplus report outputs/demo --reference paper --gates",
                "ratplus report outputs/demo outputs/mine",
            ],
            "sync": ["ratplus sync outputs/demo --entity my-team", "ratplus sync outputs/demo --dry-run"],
            "bench": [],  # ratplus.sweeps.verbs.bench has them
            "prepare": [
                "ratplus prepare data=text data.path=books/",
                "ratplus prepare data=files data.path=corpus/ data.tokenizer=tokenizer.json data.workers=8",
                "ratplus prepare data=fineweb_edu data.tokenizer=llama2/tokenizer.model data.workers=32",
            ],
            "import": ["ratplus import checkpoint.pt models/ratplus_1b --d-head 128"],
            "export": [
                "ratplus export models/ratplus_1b ratplus_1b.pt --format official",
                "ratplus export models/ratplus_1b hub/ratplus_1b --format hf",
            ],
        }[verb]
    )
    parser = argparse.ArgumentParser(
        prog=f"ratplus {verb}",
        description=VERBS[verb],
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if verb in _RUN_EXAMPLES or verb in ("prepare", "plan"):
        parser.add_argument("overrides", nargs="*", help=_OVERRIDES)
        parser.add_argument("--config-dir", metavar="DIR", help="folder with your own conf/ groups, searched as well")
    if verb in _RUN_EXAMPLES:
        parser.add_argument("-m", "--multirun", action="store_true", help="several values make several cells")
    if verb in ("status", "sync"):
        parser.add_argument("folder", help="sweep folder, such as outputs/demo")
    if verb == "report":
        parser.add_argument("folder", nargs="+", help="sweep folder, such as outputs/demo; two to compare them")
        parser.add_argument("--reference", metavar="NAME", help="paper: the paper's values beside ours")
        parser.add_argument("--gates", action="store_true", help="measure the recurrence of every finished cell first")
    if verb == "status":
        parser.add_argument(
            "--watch", nargs="?", type=float, const=5.0, metavar="SECONDS",
            help="show it again every so many seconds (default: 5) until nothing is left to do; Ctrl-C leaves",
        )  # fmt: skip
        parser.add_argument("--json", action="store_true", help="print one JSON document instead, for scripts")
    if verb == "plan":
        parser.add_argument("-m", "--multirun", action="store_true", help="several values make several cells (always)")
        parser.add_argument("--vocab", type=int, help="tokens of the text's vocabulary (default: 257, bytes)")
        parser.add_argument("--mfu", type=float, default=0.4, help="fraction of the peak that is reached (0.4)")
        parser.add_argument("--tflops", type=float, default=989.0, help="peak of a GPU in bf16 (989: H100)")
        parser.add_argument("--tokens-per-second", type=float, help="of a GPU, instead of --mfu and --tflops")
    if verb == "generate":
        parser.add_argument(
            "words", nargs="+", help="model=FOLDER or stage id, prompt=TEXT, pattern=D1,D16-W64,layers[D1,D64]; also "
            "max_new_tokens, temperature (0 is greedy), top_p, seed, tokenizer, sweep=FOLDER"
        )  # fmt: skip
    if verb == "show":
        parser.add_argument("id", help="a stage's or cell's id, or how it begins")
        parser.add_argument("folder", nargs="?", help="sweep folder (default: all sweeps under outputs/)")
        parser.add_argument("--json", action="store_true", help="print the record as it is")
    if verb == "sync":
        parser.add_argument("--entity", help="W&B user or team (default: the sweep's logger.entity, else your own)")
        parser.add_argument("--project", help="W&B project (default: the sweep's logger.project)")
        parser.add_argument("--dry-run", action="store_true", help="list what would be sent; needs no account")
        parser.add_argument("--offline", action="store_true", help="write offline runs to FOLDER/wandb instead")
        parser.add_argument("--checkpoints", action="store_true", help="also send each trained model as an artifact")
        parser.add_argument("--workspace", action="store_true", help="also write, and send, a workspace of panels")
    if verb == "bench":
        from ratplus.sweeps.verbs.bench import EXAMPLES, add_bench_arguments

        parser.epilog += "\n".join(f"  {line}" for line in EXAMPLES)
        add_bench_arguments(parser)
    if verb == "import":
        parser.add_argument("checkpoint", help="file of the reference implementation, or folder of export --format hf")
        parser.add_argument("folder", help="model folder to write")
        parser.add_argument("--d-head", type=int, default=128, help="channels per head (default: 128)")
        parser.add_argument("--max-len", type=int, default=4096, help="longest sequence (default: 4096)")
    if verb == "export":
        parser.add_argument("folder", help="model folder: of import, or a stage's of a sweep")
        parser.add_argument("target", help="file (official) or folder (hf) to write")
        parser.add_argument("--format", choices=("official", "hf"), default="official", help="default: official")
        parser.add_argument("--shard-gb", type=float, metavar="GB", help="most gigabytes (1e9) in a file of hf (5)")
    return parser


def _fail(line: str) -> None:
    from ratplus.records.secrets import scrub

    print(f"ratplus: error: {scrub(' '.join(line.split()))}", file=sys.stderr)
    sys.exit(2)
