"""`ratplus import`: a model folder made from a checkpoint of others: of the paper's code, Hugging Face, or GGUF."""

from __future__ import annotations

import argparse
from pathlib import Path

from ratplus.sweeps.define.mistakes import UsageError

HELP = "convert a checkpoint (Hugging Face folder or hub name, GGUF, reference implementation) into a model folder"
EXAMPLES = [
    "ratplus import SmolLM2-135M models/smollm2",
    "ratplus import HuggingFaceTB/SmolLM2-135M models/smollm2 --revision main",
    "ratplus import SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2",
    "ratplus import checkpoint.pt models/ratplus_1b --d-head 128",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        help="Hugging Face folder (llama, mistral, qwen2, qwen3; export --format hf), OWNER/NAME of the hub, GGUF "
        "file, or file of the reference implementation",
    )
    parser.add_argument("folder", help="model folder to write")
    parser.add_argument("--force", action="store_true", help="replace another model that lies in the folder")
    parser.add_argument("--d-head", type=int, help="channels per head, of a reference file alone (default: 128)")
    parser.add_argument("--max-len", type=int, help="longest sequence (default: the model's; reference file: 4096)")
    parser.add_argument("--revision", help="branch, tag or commit of a model of the hub")


def run(arguments: argparse.Namespace) -> int:
    """Convert the checkpoint, one tensor at a time.

    Raises:
        CheckpointError, UsageError: one line that says what is wrong with it.
    """
    from ratplus.checkpoint.adopt import bring_in, read_foreign
    from ratplus.checkpoint.llama.download import download_model, is_hub_name
    from ratplus.checkpoint.targets import check_target
    from ratplus.sweeps.views.model_line import model_line, tokenizer_words

    for option in ("max_len", "d_head"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UsageError(f"--{option.replace('_', '-')}: got {value}; it must be ≥ 1")
    source, folder = Path(arguments.checkpoint), Path(arguments.folder)
    if from_hub := is_hub_name(arguments.checkpoint):
        source = download_model(arguments.checkpoint, arguments.revision)
    if arguments.revision is not None and not from_hub:
        raise UsageError(f"--revision: got {arguments.revision}; {source} is no name of the hub, which alone has them")
    if arguments.d_head is not None and source.is_dir():
        raise UsageError(f"--d-head: got {arguments.d_head}; {source} is a folder, whose config.json tells it")
    check_target(folder, source)  # before a large file is read
    found = read_foreign(source, arguments.d_head or 128, arguments.max_len)
    bring_in(found, source, folder, arguments.force)
    print(model_line(folder, found.config, found.parameters, found.size))
    words = [f"model.init_from={folder}", *tokenizer_words(folder, found.files)]
    if found.patterns is not None:
        print(f"its own pattern, with which it was trained: {found.patterns.label}")
    print(f"use it with: {' '.join(words)}")
    return 0
