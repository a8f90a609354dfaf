"""`pytest --cpu-times=20`: which files and tests take most CPU time, their processes included.

On a busy machine that says more than `--durations`, which is of a clock on the wall. conftest.py takes these hooks in.
"""

from __future__ import annotations

import os
import resource
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

_KEY = "cpu_seconds"


def pytest_addoption(parser):
    parser.addoption(
        "--cpu-times", type=int, metavar="N", help="show the N files and tests of most CPU time at the end"
    )


def cpu_seconds() -> float:
    """CPU seconds of this process and of all that it ever started, those that still run with what they waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    living = 0
    for task in Path("/proc/self/task").glob("[0-9]*"):
        with suppress(OSError):
            for child in (task / "children").read_text().split():
                # Behind the name, which may hold anything: fields 14 to 17 are utime, stime, cutime and cstime.
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                living += sum(map(int, fields[11:15]))
    return sum(one.ru_utime + one.ru_stime for one in used) + living / os.sysconf("SC_CLK_TCK")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    item.stash[_BEFORE] = cpu_seconds()
    return (yield)


_BEFORE = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "teardown":
        report.user_properties.append((_KEY, cpu_seconds() - item.stash[_BEFORE]))
    return report


def pytest_terminal_summary(terminalreporter, config):
    most = config.getoption("--cpu-times")
    if not most:
        return
    tests, files = Counter(), Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == _KEY and report.when == "teardown":
                    tests[report.nodeid] += value
                    files[report.nodeid.partition("::")[0]] += value
    terminalreporter.section(f"CPU time: {sum(tests.values()) / 60:.1f} minutes of tests")
    for counted in (files, tests):
        for name, seconds in counted.most_common(most):
            terminalreporter.write_line(f"{seconds:7.1f} s  {name}")
