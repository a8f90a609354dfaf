"""The figure of two sweeps: how many models it has room for, and what it says of the others."""

import pytest

from ratplus.analysis.compare import differences, figure, join
from ratplus.analysis.frame.load import load_sweep
from ratplus.pattern import Pattern


@pytest.mark.parametrize("models", [5, 6])
def test_five_models_are_drawn_and_the_rest_is_told(sweep, tmp_path, models):
    other = type(sweep)(tmp_path / "outputs" / "other")
    for folder, shift in ((sweep, 0.0), (other, 0.01)):
        for model in range(models):
            folder.add(f"ratplus_{model}", Pattern(4), folder.results(1.7 + shift))
    a, b = (load_sweep(folder.write()) for folder in (sweep, other))
    labels = [text.get_text() for text in figure(differences(a, b, join(a, b)), "a", "b").legends[0].get_texts()]
    left_out = ["5 of 6 models and variants; all: see table"] if models == 6 else []
    assert labels == [*(f"ratplus_{model}" for model in range(5)), *left_out]
