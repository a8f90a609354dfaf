"""A sweep within a time limit, for a machine that is lent for minutes: `make gpu-ladder`.

Pretraining steps are timed first, and as many are run as the time allows; the sweep is an ordinary `ratplus sweep`,
told to save and stop when the time is up. What is done then is reported, printed and packed into one archive without
weights. Called again on the same folder it continues with the same number of steps.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ratplus.records.atomic import new_file, write_atomically
from ratplus.records.manifest import read_manifest
from ratplus.sweeps.define.compose import Composed, compose_cells
from ratplus.sweeps.define.manifest import plan_cells, sweep_folder
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch.child import SAVE_SECONDS
from ratplus.sweeps.launch.work import threads_per_cell
from ratplus.sweeps.views.sweep_summary import all_done, summary

# Steps of each pretraining that are run first (the first compiles the kernels), and then timed.
WARM, TIMED = 3, 6
# Seconds that no training step gets: starting processes twice, evaluating the last cells; and at the end the report.
STARTS, REPORT = 40.0, 20.0
# Of the time that is left, what steps are planned for: several processes on one GPU wait for each other a little.
SHARE = 0.85
FEWEST_STEPS = 20
# Characters of tables that are printed last.
MOST_PRINTED = 4000
_NOT_PACKED = (".safetensors", ".pt", ".tmp", ".pdf", ".tex")


@dataclass
class StepTime:
    """What a step of one pretraining takes on a device that does nothing else.

    Attributes:
        passes: forward and backward passes of a step: two with active recurrence learning.
        cells: how many cells adapt the model.
        tokens_per_second: of text and recall rows, each counted once whatever the passes.
    """

    model: str
    seconds: float
    passes: int
    cells: int
    tokens_per_second: float


def main(argv: list[str] | None = None, commands: Commands | None = None) -> int:
    """Exit code: 0 if every cell is done, 1 if not (the time was up, or some failed), 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m ratplus.sweeps.runner.timed_sweep", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("overrides", nargs="+", help="as for `ratplus sweep`")
    parser.add_argument("--seconds", type=float, required=True, help="time limit of everything, from now on")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the archive and the printed text")
    parser.add_argument("--steps", type=int, help="steps of each pretraining; without it the first ones are timed")
    parser.add_argument("--step-times", type=Path, help=argparse.SUPPRESS)  # the child's part: measure, write, end
    arguments = parser.parse_args(argv)
    try:
        cells = compose_cells(arguments.overrides)
        if arguments.step_times:
            write_atomically(arguments.step_times, json.dumps([vars(found) for found in measure(cells)]))
            return 0
        deadline = time.monotonic() + arguments.seconds
        return run(cells, arguments.overrides, deadline, arguments.out, arguments.steps, commands)
    except ValueError as error:
        print(f"timed_sweep: error: {error}", file=sys.stderr)
        return 2


def run(
    cells: list[Composed], overrides: list[str], deadline: float, out: Path, asked: int | None = None,
    commands: Commands | None = None,
) -> int:  # fmt: skip
    """Run the sweep until `deadline` (time.monotonic()); returns the exit code of `main`.

    Args:
        asked: steps of each pretraining; None chooses as many as the time allows.
        commands: what runs the work; None is processes of their own.

    Raises:
        UsageError: too little time, or `asked` is none.
    """
    commands = commands or Commands()
    folder = sweep_folder(cells)
    if asked is not None and asked < 1:
        raise UsageError(f"--steps: got {asked}; it must be ≥ 1")
    if (begun := _steps_of(folder)) is not None:
        pretrain, adapt = begun
    elif asked is not None:
        pretrain, adapt = asked, _adapt_steps(cells, asked)
    else:
        pretrain, adapt = choose_steps(cells, commands.measured(overrides, deadline), deadline - time.monotonic())
    _print_line(
        f"train.pretrain.steps={pretrain} train.adapt.steps={adapt}; {deadline - time.monotonic():.0f} s are left"
    )
    words = ["sweep", *overrides, f"train.pretrain.steps={pretrain}", f"train.adapt.steps={adapt}"]
    code = commands.ratplus(words, deadline - REPORT)
    text = "\n\n".join([" ".join(["ratplus", *words]), *summary(folder)])[:MOST_PRINTED]
    write_atomically(out / f"{folder.name}.txt", text + "\n")
    archive = pack(folder, out / f"{folder.name}.tar.gz")
    if code != 0 and (folder / "sweep.json").exists():
        # The figures come after the records are packed: whoever lends the machine may end this at any moment.
        commands.ratplus(["report", str(folder)], max(deadline, time.monotonic() + REPORT))
        pack(folder, archive)
    print(f"{archive}: {archive.stat().st_size / 1e6:.2f} MB\n{text}", flush=True)
    return 0 if all_done(folder) else 1


def measure(cells: list[Composed]) -> list[StepTime]:
    """Time a few steps of every distinct pretraining of the cells, one after another, as `ratplus pretrain` runs it."""
    import torch

    from ratplus.data.batches import Batches
    from ratplus.data.sources import corpus_of
    from ratplus.model import empty_model
    from ratplus.training.run import train
    from ratplus.training.spec import Run, Watch

    found = []
    for of_one in _by_pretraining(cells).values():
        config, corpus = of_one[0].config, corpus_of(of_one[0].config.data)
        torch.set_num_threads(config.run.threads or threads_per_cell(config.launcher))
        batches = Batches.of(config, corpus)
        recipe = replace(config.train.pretrain, steps=WARM + TIMED)
        model = empty_model(config.model.build(batches.vocab_size, config.train.context))
        model.reset_parameters(config.seed, config.model.init_std)
        ends: dict[int, float] = {}

        def ended(done: int, _steps: int, _report: dict, ends=ends) -> None:
            if done in (WARM, WARM + TIMED):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                ends[done] = time.perf_counter()

        with tempfile.TemporaryDirectory() as scratch:
            run = Run(
                "pretrain", "step-times", recipe, batches, config.patterns if recipe.sparse else None,
                recipe.arl_pattern, config.train.precision, config.run, config.trainer,
            )  # fmt: skip
            train(model, run, Path(scratch), Watch(progress=ended))
        seconds = (ends[WARM + TIMED] - ends[WARM]) / TIMED
        tokens = sum(inputs.size for inputs, _ in batches.train(recipe, "pretrain", 0))
        found.append(
            StepTime(config.model.name, seconds, 2 if recipe.arl else 1, len(of_one), tokens / seconds)
        )  # fmt: skip
    return found


def choose_steps(cells: list[Composed], times: list[StepTime], left: float) -> tuple[int, int]:
    """(pretraining, adaptation) steps that fit `left` seconds, in the proportion of the config and at most its number.

    The device's time is shared by all that runs on it, so the seconds of all steps are added up.

    Raises:
        UsageError: not even FEWEST_STEPS fit.
    """
    train = cells[0].config.train
    asked, share = train.pretrain.steps, train.adapt.steps / max(train.pretrain.steps, 1)
    each = sum(t.seconds * (1 + share * t.cells / t.passes) for t in times)
    for t in times:
        speed = f"{1e3 * t.seconds:.1f} ms a step, {t.tokens_per_second:,.0f} tokens a second"
        _print_line(f"{t.model}: {speed} (passes over each token: {t.passes})")
    steps = min(asked, int(SHARE * (left - STARTS - REPORT) / each))
    if steps < min(FEWEST_STEPS, asked):
        raise UsageError(
            f"--seconds: {left:.0f} s are left, and {each:.3g} s go to a step of every model: that is time for "
            f"{max(steps, 0)} steps, and at least {FEWEST_STEPS} are worth it; give more seconds or smaller models"
        )
    return steps, _adapt_steps(cells, steps)


def _adapt_steps(cells: list[Composed], steps: int) -> int:
    """Steps of adaptation in the config's proportion to those of pretraining."""
    train = cells[0].config.train
    return min(train.adapt.steps, max(round(steps * train.adapt.steps / max(train.pretrain.steps, 1)), 1))


def pack(folder: Path, archive: Path) -> Path:
    """Everything of a sweep folder but weights, training states and print versions of figures, as `archive`."""
    with new_file(archive) as raw, tarfile.open(fileobj=raw, mode="w:gz") as packed:
        for path in sorted(folder.rglob("*")) if folder.exists() else []:
            if path.is_file() and path.suffix not in _NOT_PACKED and path.name[0] != ".":
                packed.add(path, f"{folder.name}/{path.relative_to(folder)}")
    return archive


def _by_pretraining(cells: list[Composed]) -> dict[str, list[Composed]]:
    groups: dict[str, list[Composed]] = {}
    for cell, entry in zip(cells, plan_cells(cells)):
        groups.setdefault(entry["stages"]["pretrain"], []).append(cell)
    return groups


def _steps_of(folder: Path) -> tuple[int, int] | None:
    """The steps that a sweep folder was begun with."""
    if not (folder / "sweep.json").exists():
        return None
    train = read_manifest(folder)["cells"][0]["config"]["train"]
    return train["pretrain"]["steps"], train["adapt"]["steps"]


def measure_apart(overrides: list[str], deadline: float) -> list[StepTime]:
    """`measure` in a process of its own, which gives the GPU's memory back."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "times.json"
        words = [
            sys.executable,
            "-P",
            "-m",
            "ratplus.sweeps.runner.timed_sweep",
            *overrides,
            "--seconds",
            "0",
            "--out",
            scratch,
        ]
        left = max(deadline - REPORT - time.monotonic(), 1)
        try:
            done = subprocess.run([*words, "--step-times", str(path)], timeout=left)
        except subprocess.TimeoutExpired:
            raise UsageError(f"--seconds: timing the first steps alone takes more than {left:.0f} s") from None
        if done.returncode:
            raise UsageError("timing the first steps failed; what it said stands above")
        return [StepTime(**found) for found in json.loads(path.read_text())]


def run_ratplus(words: list[str], until: float) -> int:
    """Exit code of `ratplus <words>`, which is told to save and stop at `until`."""
    start = "import sys; from ratplus.sweeps.cli import main; sys.argv[0] = 'ratplus'; main()"
    process = subprocess.Popen([sys.executable, "-P", "-c", start, *words])
    try:
        return process.wait(max(until - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        _print_line("the time is up: the sweep saves and stops")
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(SAVE_SECONDS + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        raise


@dataclass(frozen=True)
class Commands:
    """What a timed sweep starts as processes of its own; whoever has another way hands it in.

    Attributes:
        ratplus: (words, until) -> exit code of `ratplus <words>`, which ends at the time `until` (time.monotonic()).
        measured: (overrides, deadline) -> times of a step, as `measure` gives them.
    """

    ratplus: Callable[[list[str], float], int] = run_ratplus
    measured: Callable[[list[str], float], list[StepTime]] = measure_apart


def _print_line(line: str) -> None:
    print(f"timed_sweep: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
