"""`ratplus-hydra`: one cell as a task of Hydra's, for those who bring Hydra's own launchers and sweepers.

`ratplus` composes with Hydra and launches by itself; here Hydra runs everything, and one cell is one job. The cells,
their ids, records and sweep folder are the same, so either command finds what the other has done.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Generator
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.conf import HydraConf
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ratplus.sweeps.define.compose import Composed, each_place, finished, plain_key, refuse_odd_axes
from ratplus.sweeps.define.hydra_errors import config_file_line, hydra_line
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.override_words import expand_home, refuse_words
from ratplus.sweeps.define.pattern_labels import labels_as_keys
from ratplus.sweeps.define.yaml_aliases import refuse_many_aliases
from ratplus.sweeps.exits import leave
from ratplus.sweeps.runner.objective import check_asked, directions, names_of, values_of
from ratplus.training.foreign_settings import shut_out

_CONF = "pkg://ratplus.conf"
# Tells the jobs, wherever they run, which keys the sweeper varies: a job sees only the values that it was given.
_AXES = "RATPLUS_HYDRA_AXES"
_DIRECTION = "hydra.sweeper.direction"
# Names of Hydra's own; a word of the user's for the same key comes later and counts.
_OWN_WORDS = (
    "hydra.job.name=ratplus",
    'hydra.help.header="ratplus-hydra runs one cell of a sweep as a job of Hydra (docs/launchers.md of ratplus)"',
)
_OPTIONS = "ratplus-hydra --hydra-help lists the options"
_log = logging.getLogger("ratplus")
_command: list[str] = []  # what the user typed, which records of cells that run in this process tell
_folders: dict[Path, None] = {}  # sweep folders of the cells that ran in this process


class CellEnded(Exception):
    """A cell did not end well; its record and the lines before say why. Other jobs may run on."""

    def __init__(self, code: int, text: str):
        super().__init__(code, text)
        self.code, self.text = code, text


class _Past(BaseException):
    """Carries an error past Hydra, which would go on with other jobs, or name the only one once more."""

    def __init__(self, error: BaseException):
        self.error = error


def main(argv: list[str] | None = None) -> NoReturn:
    """Entry point of the console script; ends the process with one of the exit codes of `ratplus.sweeps.exits`."""
    os.environ["PYTHONSAFEPATH"] = "1"  # as of `ratplus`
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what went wrong, instead of printing a trace
    leave(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    shut_out()
    options = _options(argv)
    if options.experimental_rerun is not None:
        raise UsageError("--experimental-rerun: reads a pickle, which may run anything; give the words again instead")
    if options.config_path is not None:
        raise UsageError("--config-path: cells are composed of ratplus' own files; --config-dir adds a folder of yours")
    if options.config_dir is not None:
        if not Path(options.config_dir).is_dir():
            raise UsageError(f"--config-dir {options.config_dir}: no such folder")
        refuse_many_aliases(options.config_dir)
    words = labels_as_keys([expand_home(word) for word in options.overrides], options.config_dir)
    with _told_in_a_line(options, words):
        more = _words_for_jobs(options, words)
        # Hydra wants all words side by side.
        left = list(options.overrides)
        rest = [word for word in argv if not (left and word == left[0] and left.pop(0))]
        before = sys.argv
        _command[:] = [sys.argv[0], *argv]
        sys.argv = [sys.argv[0], *_OWN_WORDS, *words, *more, *rest]
        try:
            cell()
        finally:
            sys.argv = before
    for folder in _folders:
        print(shlex.join(["ratplus", "report", str(folder)]), "writes tables, figures and the page")
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    """Hydra's options, and the words between them."""
    parser = get_args_parser()
    parser.prog = "ratplus-hydra"
    parser.exit_on_error = False
    try:
        options, strange = parser.parse_known_intermixed_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}; {_OPTIONS}") from None
    if strange:
        raise UsageError(f"{strange[0]}: no such option; {_OPTIONS}")
    return options


@contextmanager
def _told_in_a_line(options: argparse.Namespace, words: list[str]) -> Generator[None]:
    """Turn what Hydra raises into one line for the user, and how a cell ended into an exit code."""
    _folders.clear()
    try:
        yield
    except _Past as past:
        _end(past.error)
    except CellEnded as ended:
        _end(ended)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_line(error, options, words)) from None
    except Exception as error:  # the YAML reader and Hydra let pass whatever a file of the user's makes them raise
        if not isinstance(error, ValueError) and (line := config_file_line(error, options.config_dir, tuple(words))):
            raise UsageError(line) from None
        raise


def _end(error: BaseException) -> NoReturn:
    if isinstance(error, CellEnded):
        print(f"ratplus: {error.text}", file=sys.stderr)
        raise SystemExit(error.code)
    raise error


def _line(error: Exception, options: argparse.Namespace, words: list[str]) -> str:
    """One line for an error of Hydra's."""
    if line := config_file_line(error, options.config_dir, tuple(words)):
        return line
    line = hydra_line(error)
    if "does not support sweep type" in line:
        given = next((word for word in words if "=interval(" in word), "interval(a, b)")
        return f"{given}: an interval is for hydra/sweeper=optuna; the basic sweeper takes values one by one: a,b"
    if line.startswith("hydra/sweeper=optuna: no such choice"):
        return f"{line}; pip install 'ratplus[optuna]' brings it"
    if line.startswith("hydra.") and "unknown key" in line:
        return f"{line.partition(':')[0]}: no key of Hydra's, or not of the sweeper or launcher that is chosen"
    if line.startswith("pattern=") and "no such choice" in line:
        return f"{line}; labels such as D16 are values of pattern.label: 'pattern.label=choice(D1,D16)'"
    return line


# ---- before Hydra runs ----------------------------------------------------------------------------------------------


def _words_for_jobs(options: argparse.Namespace, words: list[str]) -> list[str]:
    """What is added to the command: the keys that jobs differ in, and the direction in which results are better.

    Raises:
        UsageError: an axis that changes no result, or a sweeper without an objective.
    """
    if options.help or options.hydra_help or options.cfg or options.info or options.shell_completion:
        return []
    with _hydra(options) as app:
        parsed = _parsed(words, app)
        if any(one.is_sweep_override() and one.key_or_group == "objective" for one in parsed):
            raise UsageError(
                "objective: takes no values in turn; several at once are a list: objective=[loss,kv_ratio]"
            )
        composed = app.compose_config(
            config_name=options.config_name or "config", overrides=list(words), run_mode=RunMode.MULTIRUN,
            with_log_configuration=False, validate_sweep_overrides=False,
        )  # fmt: skip
    own = composed.hydra
    if not options.multirun and own.mode != RunMode.MULTIRUN:
        for one in parsed:
            if one.is_sweep_override():
                raise UsageError(f"{one.input_line}: several values; add -m to run them all")
        return []
    if composed.dry_run:
        raise UsageError("dry_run: shows one cell; `ratplus sweep -m ... dry_run=true` lists those of several")
    params = [*(own.sweeper.get("params") or {}), *(own.sweeper.get("search_space") or {})]
    swept = [one for one in parsed if one.is_sweep_override()]
    axes = {plain_key(str(key)) for key in (*params, *(one.get_key_element() for one in swept))}
    axes = {axis for axis in axes if not axis.startswith("hydra")}
    refuse_odd_axes(axes)
    more = [f'+hydra.job.env_set.{_AXES}="{" ".join(sorted(axes))}"']
    names = names_of(cast(Any, OmegaConf.to_container(composed)).get("objective"))
    return more + _direction(own.sweeper, names, {one.get_key_element() for one in parsed})


def _direction(sweeper: DictConfig, names: list[str], given: set[str]) -> list[str]:
    """The word that tells a sweeper whether less or more of the objective is better."""
    target = str(sweeper.get("_target_", ""))
    if not names and "BasicSweeper" not in target:
        raise UsageError("objective: must be given, since the sweeper decides by it: objective=loss")
    if not names or "direction" not in sweeper:
        return []
    if _DIRECTION in given:
        said = sweeper.direction if OmegaConf.is_list(sweeper.direction) else [sweeper.direction]
        if len(said) != len(names):
            raise UsageError(f"{_DIRECTION}: has {len(said)} directions for {len(names)} objectives; give one for each")
        return []
    found = directions(names)
    word = f"{_DIRECTION}={found[0] if len(found) == 1 else '[' + ','.join(found) + ']'}"
    print(f"{word}, as is better of {', '.join(names)}", file=sys.stderr)
    return [word]


@contextmanager
def _hydra(options: argparse.Namespace) -> Generator[Hydra]:
    """Hydra as `hydra.main` sets it up, to look at what it will compose."""
    path = create_automatic_config_search_path(None, None, _CONF)
    if options.config_dir is not None:
        folder = f"file://{os.path.abspath(options.config_dir)}"
        path.prepend(provider="command-line", path=folder, anchor=SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2(task_name="ratplus", config_search_path=path)
    finally:
        GlobalHydra.instance().clear()


def _parsed(words: list[str], app: Hydra) -> list[Override]:
    parser = OverridesParser.create(config_loader=app.config_loader)
    try:
        return parser.parse_overrides(words)
    except HydraException as error:
        refuse_words(words, parser)
        raise UsageError(hydra_line(error)) from None


# ---- one job --------------------------------------------------------------------------------------------------------


@hydra.main(version_base="1.3", config_path=_CONF, config_name="config")
def cell(cfg: DictConfig) -> float | list[float] | None:
    """Run one cell to its evaluation, or read what it has; returns its objective, one number or several."""
    sys.argv = list(_command) or sys.argv
    job = HydraConfig.get()
    alone = job.mode == RunMode.RUN
    # Paths are meant from where the command was given, also where hydra.job.chdir gives each job a folder of its own.
    with chdir(job.runtime.cwd) if job.job.chdir else nullcontext():
        try:
            return _run_cell(_composed(cfg, job))
        except (ValueError, OSError) as error:
            if alone:
                raise _Past(error) from None
            raise
        except CellEnded as ended:
            if alone or ended.code > 128:  # after Ctrl-C or SIGTERM no other job is wanted
                raise _Past(ended) from None
            raise


def _composed(cfg: DictConfig, job: HydraConf) -> Composed:
    """The cell of a config that Hydra composed.

    Raises:
        UsageError: a value that is not allowed, or one that only `ratplus` itself can do something with.
    """
    words = OverridesParser.create().parse_overrides([str(word) for word in job.overrides.task])
    chosen = {str(k): v for k, v in job.runtime.choices.items() if not str(k).startswith("hydra")}
    sources = [source.path for source in job.runtime.config_sources if source.provider == "command-line"]
    try:
        plain = cast("dict", OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        raise UsageError(hydra_line(error)) from None
    given = {plain_key(one.get_key_element()) for one in words}
    config = finished(plain, chosen, given, sources[0] if sources else None)
    if config.launcher.kind != "local":
        raise UsageError(
            f"launcher={config.launcher.kind}: of `ratplus` alone; here Hydra launches: hydra/launcher=..."
        )
    if len(each_place(config)) > 1:
        raise UsageError("pattern.only_layer or only_head: `each` makes several cells; use `ratplus sweep`")
    axes = str(job.job.env_set.get(_AXES, "")).split()
    return Composed(each_place(config)[0], chosen, sorted(axes))


def _run_cell(composed: Composed) -> float | list[float] | None:
    from ratplus.records.status import cell_state
    from ratplus.sweeps.define.manifest import add_cells, sweep_folder
    from ratplus.sweeps.launch.launch import launch
    from ratplus.sweeps.runner.cells import planned, run_composed

    config = composed.config
    if config.dry_run:
        run_composed([composed], "evaluate")
        return None
    folder = sweep_folder([composed])
    (entry,) = planned([composed], folder)
    if cell_state(folder, entry["stages"], "evaluate").status != "done":
        check_asked(config)
    add_cells(folder, folder.name, [entry])
    _folders[folder] = None
    ended = launch([entry], folder, "evaluate", config)
    name = f"{entry['model']} {entry['label']}" + (f" seed={entry['seed']}" if entry["seed"] else "")
    if ended.code:
        raise CellEnded(ended.code, f"{name} ({folder}/evaluate/{entry['id']}) did not end well")
    names = names_of(config.objective)
    values = values_of(names, folder, entry)
    said = ", ".join(f"{key} {value:.6g}" for key, value in zip(names, values))
    _log.info("%s: %s", f"{name} ({folder}/evaluate/{entry['id']})", said or "done")
    return None if not names else values[0] if len(names) == 1 else values
