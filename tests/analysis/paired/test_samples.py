"""Stored samples brought together item by item, from files as an evaluation leaves them."""

import json

import numpy as np
import pytest

from ratplus.analysis.paired.samples import asked, joined_items, read_items
from ratplus.records.samples import write_samples


def evaluation(folder, metrics: dict[str, float], samples: list[dict]):
    folder.mkdir(parents=True)
    told = {name: {"value": value, "stderr": None, "count": 1} for name, value in metrics.items()}
    (folder / "record.json").write_text(json.dumps({"metrics": told, "config": {}}))
    write_samples(folder, samples)
    return folder


def losses(*values: float) -> list[dict]:
    return [{"task": "loss", "id": i, "loss": value} for i, value in enumerate(values)]


def test_of_several_evaluations_the_first_that_has_a_metric_counts(tmp_path):
    place = tmp_path / "evaluate"
    evaluation(place / "own", {"loss": 1.5}, losses(1.0, 2.0))
    recall = [{"task": "recall", "id": 0, "accuracy": 1.0}, {"task": "recall", "id": 1, "accuracy": 0.0}]
    evaluation(place / "more", {"loss": 6.0, "recall_accuracy": 0.5}, [*losses(5.0, 7.0), *recall])
    found = joined_items(tmp_path, ("own", "more"))
    assert list(found["loss"].values) == [1.0, 2.0]
    assert list(found["recall_accuracy"].values) == [1.0, 0.0]
    assert list(joined_items(tmp_path, ("more", "own"))["loss"].values) == [5.0, 7.0]


def test_items_stand_by_their_ids_and_weigh_their_counts(tmp_path):
    samples = [{"task": "loss", "id": i, "loss": x, "count": n} for i, x, n in ((2, 4.0, 1), (0, 1.0, 3), (1, 9.0, 0))]
    items = read_items(evaluation(tmp_path / "a", {"loss": 1.75}, samples))["loss"]
    assert list(items.ids) == [0, 2], "a row in which nothing was asked has no value"
    assert list(items.values) == [1.0, 4.0]
    assert list(items.weights) == [3.0, 1.0]
    assert items.whole


def test_a_file_or_a_record_that_was_written_since_is_read_again(tmp_path):
    folder = evaluation(tmp_path / "a", {"loss": 1.5}, losses(1.0, 2.0))
    first = read_items(folder)
    assert read_items(folder) is first
    write_samples(folder, losses(0.5, 2.5))  # another evaluation of the same mean
    assert list(read_items(folder)["loss"].values) == [0.5, 2.5]
    assert read_items(folder)["loss"].whole
    record = folder / "record.json"
    record.write_text(record.read_text().replace("1.5", "1.75"))
    assert not read_items(folder)["loss"].whole


@pytest.mark.parametrize(("told", "whole"), [(1.5, True), (1.5 + 1e-6, True), (1.5001, False), (None, False)])
def test_items_are_whole_if_their_mean_is_the_recorded_value(tmp_path, told, whole):
    assert read_items(evaluation(tmp_path / "a", {"loss": told}, losses(1.0, 2.0)))["loss"].whole is whole


@pytest.mark.parametrize(("told", "whole"), [(0.0, True), (-4e-8, True), (-2e-7, False)])
def test_near_zero_a_mean_is_compared_by_its_distance(tmp_path, told, whole):
    assert read_items(evaluation(tmp_path / "a", {"loss": told}, losses(6e-8, 2e-8)))["loss"].whole is whole


def test_a_metric_belongs_to_the_task_with_the_longest_name_that_it_begins_with(tmp_path):
    folder = evaluation(tmp_path / "evaluate" / "a", {"arc_acc": 1.0, "arc_easy_acc": 1.0, "arc_easy": 1.0}, [])
    record = json.loads((folder / "record.json").read_text())
    tasks = {name: {"prompts_sha256": name.upper()} for name in ("arc", "arc_easy", "arc_ea")}
    (folder / "record.json").write_text(json.dumps(record | {"provenance": {"tasks": tasks}}))
    found = {metric: asked(tmp_path, ("a",), metric) for metric in record["metrics"]}
    assert found == {"arc_acc": "ARC", "arc_easy_acc": "ARC_EASY", "arc_easy": "ARC_EASY"}


def test_which_settings_decide_what_rows_of_text_and_of_recall_are_asked(tmp_path):
    """Those of the rows alone: a sweep that was trained on more text, or asked another suite, is still comparable."""

    def names(name: str, **changes) -> dict[str, str | None]:
        flat = {"context": 512, "validation": "v", "train": "t", "tokenizer": "bytes", "pairs": 8,
                "text_rows": 64, "recall_rows": 32, "cloze": 10} | changes  # fmt: skip
        config = {
            "context": flat["context"],
            "data": {
                "sha256": {"train": flat["train"], "validation": flat["validation"]}, "tokenizer": flat["tokenizer"],
                "recall": {"pairs": flat["pairs"]},
            },
            "eval": {"text_rows": flat["text_rows"], "recall_rows": flat["recall_rows"], "cloze": flat["cloze"]},
        }  # fmt: skip
        folder = evaluation(tmp_path / "evaluate" / name, {"loss": 1.0, "recall_accuracy": 0.5, "gain": 1.0}, [])
        record = json.loads((folder / "record.json").read_text())
        (folder / "record.json").write_text(json.dumps(record | {"config": config}))
        return {metric: asked(tmp_path, (name,), metric) for metric in ("loss", "recall_accuracy", "gain")}

    usual = names("usual")
    assert usual == names("again"), "equal settings ask the same"
    assert len(set(usual.values())) == 3
    decides = {
        "context": {"loss", "recall_accuracy", "gain"}, "validation": {"loss", "gain"}, "tokenizer": {"loss", "gain"},
        "text_rows": {"loss", "gain"}, "recall_rows": {"recall_accuracy", "gain"}, "pairs": {"recall_accuracy", "gain"},
        "train": {"gain"}, "cloze": {"gain"},
    }  # fmt: skip
    for key, metrics in decides.items():
        other = names(key, **{key: 7})
        assert {metric for metric in usual if other[metric] != usual[metric]} == metrics, key


def test_an_id_that_stands_for_several_items_stands_for_none(tmp_path):
    folder = evaluation(tmp_path / "a", {"loss": 1.5}, [*losses(1.0), *losses(2.0)])
    assert read_items(folder) == {}


def test_items_pair_only_with_the_same(tmp_path):
    one, same, other = (read_items(evaluation(tmp_path / name, {"loss": sum(x) / len(x)}, losses(*x)))["loss"]
                        for name, x in (("a", (1.0, 2.0)), ("b", (3.0, 2.0)), ("c", (1.0, 2.0, 3.0))))  # fmt: skip
    assert one.pairs_with(same)
    assert not one.pairs_with(other)
    assert one.seed == same.seed, "the same items are drawn alike"
    assert np.array_equal(one.ids, same.ids)
