"""One way out for every command: what a verb raises, and streams that nobody reads, become a code and one line."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from ratplus.sweeps.define.mistakes import mistake_line, say, say_error, to_nowhere

EXIT_MISTAKE = 2
EXIT_OUR_FAULT = 70  # as sysexits.h calls an internal software error
EXIT_CTRL_C = 130
EXIT_BROKEN_PIPE = 141  # as a shell reports a process that SIGPIPE ended
LAST_SECONDS = 60.0  # that libraries get for their own ends, when all of ours is done


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
        to_nowhere("stdout", "stderr")
        code = EXIT_BROKEN_PIPE
    except BaseException as error:  # libraries in Rust panic with an exception that is no Exception
        line = mistake_line(error)
        code = EXIT_MISTAKE if line is not None else _our_fault(error)
        if line is not None:
            from ratplus.sweeps.share.unpack import naming_packs

            say_error(naming_packs(line))
    if "wandb" in sys.modules:
        atexit.register(_end_at_last, code if isinstance(code, int) else int(code is not None))
    sys.exit(code)


def _end_at_last(code: int) -> None:
    """At the end of Python: end the process in LAST_SECONDS, if it has not ended by itself.

    W&B then waits for its service's process without a limit, and that has been seen never to end (a server that could
    not be reached). Runs are finished and all files are written before. Where a caller goes on after `leave`, nothing
    is set.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, lambda *_: os._exit(code))
        signal.setitimer(signal.ITIMER_REAL, LAST_SECONDS)


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
        say(f"{said}the full trace is in {path}; please report it with that file")
    except OSError as refused:
        say(f"{said}no file for the full trace could be written ({refused.strerror}), so it follows")
        print(scrub(text), file=sys.stderr)
    return EXIT_OUR_FAULT


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
        to_nowhere("stdout")
        raise OSError(error.errno, error.strerror, "standard output") from None
