"""One way out for every command: what a verb raises, and streams that nobody reads, become a code and one line."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import NoReturn

_LONGEST_LINE = 4_000
EXIT_MISTAKE = 2
EXIT_OUR_FAULT = 70  # as sysexits.h calls an internal software error
EXIT_CTRL_C = 130
EXIT_BROKEN_PIPE = 141  # as a shell reports a process that SIGPIPE ended


def leave(command: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit code, or with that of what it raised.

    0: done; 1: a cell or a gate failed; 2: a mistake that the user can mend, or no room for what is written; 70: a
    fault of ours, with the full trace in a file; 130: Ctrl-C; 141: nobody reads the output any more.
    """
    _open_streams()
    try:
        try:
            code = command()
        except SystemExit as asked:  # argparse, after a usage line or its help
            code = asked.code
        _flush()
    except KeyboardInterrupt:
        code = EXIT_CTRL_C
    except BrokenPipeError:
        _to_nowhere("stdout", "stderr")
        code = EXIT_BROKEN_PIPE
    except ValueError as error:
        # Every mistake that a user can mend is raised as a ValueError with a message of one line.
        code = _mistake(str(error))
    except OSError as error:
        code = _mistake(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except MemoryError as error:
        code = _mistake(f"not enough memory on this machine ({str(error) or 'an allocation was refused'})")
    except RuntimeError as error:
        # What torch raises where the system refuses memory is no MemoryError.
        refused = "can't allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError"
        code = _mistake("not enough memory on this machine or GPU") if refused else _our_fault(error)
    except ImportError as error:
        code = _mistake(f"{error}; a package that ratplus needs is missing or damaged: install ratplus again")
    except BaseException as error:  # libraries in Rust panic with an exception that is no Exception
        code = _our_fault(error)
    sys.exit(code)


def _mistake(line: str) -> int:
    from ratplus.sweeps.share.unpack import naming_packs

    _say(f"ratplus: error: {naming_packs(line)}")
    return EXIT_MISTAKE


def _our_fault(error: BaseException) -> int:
    from ratplus import __version__
    from ratplus.records.lines import first_line
    from ratplus.records.secrets import scrub

    text = "".join(traceback.format_exception(error))
    head = f"ratplus {__version__}, Python {sys.version.split()[0]}, {sys.platform}\n{sys.argv}\n\n"
    what = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
    said = f"ratplus: error: a fault of ratplus {__version__}, not of your input ({what}); "
    try:
        handle, path = tempfile.mkstemp(prefix="ratplus-fault-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(scrub(head + text))
        _say(f"{said}the full trace is in {path}; please report it with that file")
    except OSError as refused:
        _say(f"{said}no file for the full trace could be written ({refused.strerror}), so it follows")
        print(scrub(text), file=sys.stderr)
    return EXIT_OUR_FAULT


def _say(line: str) -> None:
    from ratplus.records.lines import plain
    from ratplus.records.secrets import scrub

    # Cut before it is searched for secrets, and again where none can be left in two: searching megabytes takes seconds.
    line = plain(scrub(" ".join(line[: 20 * _LONGEST_LINE].split())))
    if len(line) > _LONGEST_LINE:  # it may quote what somebody wrote into a file
        line = f"{line[:_LONGEST_LINE]}…"
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it, or there is no room: the exit code is all that is left to tell
        _to_nowhere("stderr")


# ---- streams --------------------------------------------------------------------------------------------------------


def _open_streams() -> None:
    """Make standard streams safe to write to: closed ones lead nowhere, and no character is refused.

    Python leaves a closed stream as None, and the next file that is opened would get its number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 (for good)
    for stream in (sys.stdout, sys.stderr):
        # A terminal of ASCII shows `\u00d7` for what it has no sign for; a file name that is no text is shown as well.
        reconfigure = getattr(stream, "reconfigure", None)
        if callable(reconfigure):
            reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Write what is buffered now: at the interpreter's own end a refusal would be a traceback and exit code 120."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _to_nowhere("stdout")
        raise OSError(error.errno, error.strerror, "standard output") from None


def _to_nowhere(*names: str) -> None:
    """Lead streams to the null device, so that what they still hold is dropped without a word."""
    for name in names:
        try:
            handle = os.open(os.devnull, os.O_WRONLY)
            os.dup2(handle, getattr(sys, name).fileno())
            os.close(handle)
        except (OSError, ValueError, AttributeError):  # a stream of a test's, without a file
            continue
