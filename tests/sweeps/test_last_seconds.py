"""A command ends, also where a library that it used never does."""

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys, threading, types
from ratplus.sweeps import exits
exits.LAST_SECONDS = float(sys.argv[2])
sys.modules["wandb"] = types.ModuleType("wandb")  # what it does at the end stands in the next line
atexit.register(threading.Event().wait)
exits.leave(lambda: int(sys.argv[1]))
"""


@pytest.mark.parametrize("code", [0, 2])
def test_a_library_that_never_ends_is_left(code):
    done = subprocess.run([sys.executable, "-P", "-c", SCRIPT, str(code), "0.2"], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, b"")


def test_whoever_goes_on_after_a_command_is_not_ended():
    script = SCRIPT.replace("exits.leave(", "import time\ntry: exits.leave(").replace(
        "atexit.register(threading.Event().wait)", ""
    )
    script += "except SystemExit: time.sleep(0.5)\nprint('still there')"
    done = subprocess.run([sys.executable, "-P", "-c", script, "2", "0.1"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "still there\n"), done.stderr
