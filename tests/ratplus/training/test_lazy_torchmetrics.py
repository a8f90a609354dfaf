"""A package like torchmetrics is run only when somebody asks for more than Lightning does."""

import importlib
import sys
import threading

import pytest

from ratplus.training.lazy_torchmetrics import PACKAGE, put_off

NAME = "metrics_to_put_off"
FILES = {
    "__init__.py": "import logging\n_logger = logging.getLogger(__name__)\n"
    f"from {NAME} import utilities\nfrom {NAME}.metric import Metric\n"
    f"from {NAME} import heavy\nfrom {NAME}.heavy import Accuracy\n",
    "__about__.py": "__version__ = '1.2'\n",
    "utilities.py": f"from {NAME} import _logger\nfrom {NAME}.metric import Metric\n",
    "metric.py": f"import {NAME}.utilities\nclass Metric: pass\n",
    "heavy.py": f"import time\ntime.sleep(0.1)\nfrom {NAME} import Metric\nclass Accuracy(Metric): pass\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    def make(**changed: str) -> None:
        (tmp_path / NAME).mkdir()
        for file, text in (FILES | {f"{name}.py": text for name, text in changed.items()}).items():
            (tmp_path / NAME / file).write_text(text)
        importlib.invalidate_caches()
        put_off(NAME)

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


def heavy() -> bool:
    return f"{NAME}.heavy" in sys.modules


def test_what_lightning_takes_does_not_run_the_package(package):
    package()
    module = importlib.import_module(NAME)
    assert module.__version__ == "1.2"
    assert module.Metric is importlib.import_module(f"{NAME}.metric").Metric
    assert module._logger.name == NAME
    assert module.__file__.endswith("__init__.py")
    assert not heavy()


def test_anything_else_runs_it_once_and_whole(package):
    package()
    module = sys.modules[NAME]
    metric = module.Metric
    found = []
    threads = [threading.Thread(target=lambda: found.append(module.Accuracy)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    accuracy = module.Accuracy
    assert sys.modules[NAME] is module
    assert found == [accuracy] * 4
    assert module.heavy.Accuracy is accuracy
    assert issubclass(accuracy, metric)
    assert module.Metric is metric
    with pytest.raises(AttributeError, match=f"module '{NAME}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018
    everything: dict = {}
    exec(f"from {NAME} import *", everything)
    assert everything["Accuracy"] is accuracy


def test_a_star_import_sees_all_of_it(package):
    package()
    everything: dict = {}
    exec(f"from {NAME} import *", everything)
    assert {"Accuracy", "Metric"} <= everything.keys()


def test_another_version_that_defines_its_classes_elsewhere(package):
    package(metric="", utilities="", heavy="class Metric: pass\nAccuracy = Metric\n",
            __init__="from .heavy import Accuracy, Metric\n")  # fmt: skip
    assert importlib.import_module(NAME).Metric.__module__ == f"{NAME}.heavy"


def test_a_package_that_cannot_be_imported_says_why_each_time(package):
    package(__init__="import no_such_package_of_anybodys\n")
    module = importlib.import_module(NAME)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_package_of_anybodys"):
            module.Accuracy  # noqa: B018


def test_one_that_is_imported_already_or_not_installed_is_left_alone(package, tmp_path):
    package()
    del sys.modules[NAME]
    module = importlib.import_module(NAME)
    put_off(NAME)
    assert sys.modules[NAME] is module
    put_off("no_such_package_of_anybodys")
    assert "no_such_package_of_anybodys" not in sys.modules


def test_lightning_has_the_real_classes():
    from lightning.pytorch.core import module as lightning_module

    package = importlib.import_module(PACKAGE)
    assert lightning_module.Metric is package.Metric
    assert lightning_module.MetricCollection is package.MetricCollection
