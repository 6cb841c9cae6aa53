"""The bundled ViGGO records: the same everywhere, in the right form, and not to be solved by looking answers up."""

from __future__ import annotations

import collections
import hashlib
import json
import time

import numpy as np
import pytest
from scipy import sparse

from tasks import viggo_bundled
from tasks.base import SPLITS, Completion, Record
from tasks.sources import load
from tasks.viggo import TASK
from tasks.viggo_bundled import generate
from tasks.viggo_form import ATTRIBUTES, FUNCTIONS, parse

FLOOR = {"train": 4000, "valid": 400, "test": 400}
PINNED = {
    "train": "32303337cc0c48bd",
    "valid": "0e1571c2fd8c21f6",
    "test": "af23aa7973ba9e81",
}


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_the_same_on_every_machine(split: str) -> None:
    digest = hashlib.sha256(json.dumps(generate(split)).encode()).hexdigest()
    assert digest[:16] == PINNED[split]


@pytest.mark.parametrize("split", SPLITS)
def test_there_are_enough_rows_of_moderate_length(split: str) -> None:
    rows = generate(split)
    words = [len(row["ref"].split()) for row in rows]
    assert len(rows) >= FLOOR[split]
    assert 12 < sum(words) / len(words) < 25
    assert max(words) <= 50


def test_splits_share_no_sentence_and_no_representation() -> None:
    for column in ("ref", "mr"):
        texts = [row[column] for split in SPLITS for row in generate(split)]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("split", SPLITS)
def test_every_function_and_attribute_occurs(split: str) -> None:
    representations = [parse(row["mr"]) for row in generate(split)]
    functions = collections.Counter(r.function for r in representations)
    attributes = collections.Counter(name for r in representations for name in r.attributes)
    assert set(functions) == set(FUNCTIONS)
    assert set(attributes) == set(ATTRIBUTES)
    assert min(functions.values()) >= 5
    assert functions["inform"] < 0.5 * len(representations)
    assert any(not value for r in representations for _, value in r.slots)


@pytest.mark.parametrize("split", SPLITS)
def test_gold_is_perfect_and_grounded(split: str) -> None:
    perfect = {name: float(name != "format_violation") for name in TASK.metric_names}
    for record in load(TASK, split, "bundled"):
        score = TASK.score(record, Completion(TASK.reference(record)))
        assert (score.metrics, score.error) == (perfect, None), record


def test_sentences_do_not_follow_the_order_of_the_representation() -> None:
    """The order of precedence is what a tuned model learns: it must not come for free from copying left to right."""
    in_order = 0
    rows = [row for row in generate("test") if parse(row["mr"]).function == "inform"]
    for row in rows:
        slots = [(n, v.split(",")[0].split(" (")[0]) for n, v in parse(row["mr"]).slots if v not in ("yes", "no")]
        places = [row["ref"].find(value) for _, value in slots]
        in_order += places == sorted(places)
    assert in_order / len(rows) < 0.6


def test_generation_is_quick() -> None:
    start = time.process_time()
    assert len(viggo_bundled._all_splits.__wrapped__()) == len(SPLITS)
    assert time.process_time() - start < 2


def _words(text: str) -> list[str]:
    return text.lower().split()


def _trigrams(text: str) -> list[str]:
    padded = f" {text.lower()} "
    return [padded[i : i + 3] for i in range(len(padded) - 2)]


def _tf_idf(train: list[list[str]], test: list[list[str]]) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Rows of unit length, (examples, features): cosine similarity is then a product."""
    features = {feature: i for i, feature in enumerate(sorted({f for parts in train for f in parts}))}
    documents = collections.Counter(feature for parts in train for feature in set(parts))
    idf = np.array([np.log(len(train) / documents[feature]) + 1.0 for feature in features])

    def rows(examples: list[list[str]]) -> sparse.csr_matrix:
        cells = [
            (i, features[f], n)
            for i, p in enumerate(examples)
            for f, n in collections.Counter(p).items()
            if f in features
        ]
        row, column, count = zip(*cells, strict=True)
        matrix = sparse.csr_matrix((count, (row, column)), shape=(len(examples), len(features))) @ sparse.diags(idf)
        return sparse.diags(1.0 / np.sqrt(matrix.multiply(matrix).sum(axis=1).A1)) @ matrix

    return rows(train), rows(test)


def _nearest_neighbour(features: object, train: list[Record], test: list[Record]) -> dict[str, float]:
    """Mean of each metric when every test sentence gets the answer of the most similar training sentence."""
    parts = [[features(record["ref"]) for record in records] for records in (train, test)]  # type: ignore[operator]
    known, asked = _tf_idf(*parts)
    best = np.asarray((asked @ known.T).todense()).argmax(axis=1)
    totals: collections.Counter[str] = collections.Counter()
    for record, i in zip(test, best, strict=True):
        totals.update(TASK.score(record, Completion(TASK.reference(train[i]))).metrics)
    return {name: total / len(test) for name, total in totals.items()}


@pytest.mark.parametrize("features", [_words, _trigrams])
def test_the_nearest_training_sentence_does_not_have_the_answer(
    features: object, capsys: pytest.CaptureFixture[str]
) -> None:
    means = _nearest_neighbour(features, load(TASK, "train", "bundled"), load(TASK, "test", "bundled"))
    with capsys.disabled():
        print("\nnearest neighbour:", {name: round(mean, 3) for name, mean in means.items()})
    assert means["exact"] <= 0.05
    assert means["values"] <= 0.05
    assert means["attributes_ordered"] <= 0.5
    assert means["parsable"] == 1.0
