"""Figures as aligned text: numbers to the right, texts to the left, what a row lacks empty."""

from ratplus.sweeps.views.text_table import columns


def test_numbers_stand_to_the_right_and_texts_to_the_left():
    rows = [
        {"name": "a", "n": 5, "x": 1.23456, "mixed": "1e3", "flag": True},
        {"name": "longer", "n": 1234, "x": 0.5, "mixed": "–", "flag": False},
        {"name": "b", "x": 1234567.0, "late": "end"},
    ]
    assert columns(rows).splitlines() == [
        "name       n          x  mixed  flag   late",
        "a          5      1.235  1e3    True",
        "longer  1234        0.5  –      False",
        "b             1.235e+06                end",
    ]


def test_a_head_wider_than_its_numbers_stands_to_the_right_too():
    assert columns([{"FLOPs to go": "7"}]).splitlines() == ["FLOPs to go", "          7"]
