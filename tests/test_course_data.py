"""The messages and conversations written for this course are varied and well-formed."""

import json
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest
import torch

from shared.classification import load_messages
from shared.instruction import holds, is_right

ROOT = Path(__file__).resolve().parent.parent


def preferences() -> list[dict]:
    path = ROOT / "ch07_instruction" / "preferences.json"
    return json.loads(path.read_text(encoding="utf-8"))


def conversations() -> list[dict]:
    path = ROOT / "ch07_instruction" / "conversations.json"
    return json.loads(path.read_text(encoding="utf-8"))


def questions() -> list[dict]:
    path = ROOT / "ch07_instruction" / "four_choices.json"
    return json.loads(path.read_text(encoding="utf-8"))


TEXTS = {
    "messages": lambda: list(load_messages()["text"]),
    "conversations": lambda: [entry["turns"][0] for entry in conversations()],
    "four choices": lambda: [q["question"] for q in questions()],
}
each_text = pytest.mark.parametrize("name", TEXTS)


def similarities(texts: list[str]) -> torch.Tensor:
    """Return the Jaccard similarity (N, N) of sets of 5-grams, 0 on the diagonal."""
    grams = [
        {t[i : i + 5] for i in range(max(1, len(t) - 4))} for t in map(str.lower, texts)
    ]
    number = {gram: n for n, gram in enumerate(sorted(set.union(*grams)))}
    has = torch.zeros(len(texts), len(number))
    for row, found in zip(has, grams, strict=True):
        row[[number[gram] for gram in found]] = 1
    common, size = has @ has.T, has.sum(dim=1)
    return (common / (size[:, None] + size - common)).fill_diagonal_(0)


def test_the_measure_measures():
    table = similarities(["abcdef", "abcdeg", "xyz", "ABCDEF"])
    assert table[0].tolist() == pytest.approx([0, 1 / 3, 0, 1])


@each_text
def test_no_two_texts_are_alike(name):
    texts = TEXTS[name]()
    table = similarities(texts)
    i, j = divmod(int(table.argmax()), len(texts))
    assert table.max() <= 0.5, (texts[i], texts[j])


@each_text
def test_openings_vary(name):
    texts = TEXTS[name]()
    openings = Counter(" ".join(text.lower().split()[:4]) for text in texts)
    opening, count = openings.most_common(1)[0]
    assert count <= 0.05 * len(texts), opening


def test_preferences_are_the_models_own_words():
    """Two answers to a checked question of its split; chosen is right and short."""
    asked = {e["turns"][0]: e for e in conversations() if "accepted" in e}
    pairs = preferences()
    assert len({pair["prompt"] for pair in pairs}) == len(pairs)
    for pair in pairs:
        entry = asked[pair["prompt"]]
        assert pair["split"] == entry["split"] != "validation", pair
        assert is_right(pair["chosen"], entry), pair
        assert is_right(pair["rejected"], entry) == (pair["why"] == "long"), pair
        words = [len(pair[side].split()) for side in ("chosen", "rejected")]
        assert pair["why"] == "wrong" or words[1] >= 1.5 * words[0], pair


def test_preferences_name_the_adapter_that_gave_them():
    tuned = ROOT / "ch07_instruction" / "tuned" / "trained.safetensors"
    name = sha256(tuned.read_bytes()).hexdigest()[:12]
    assert {pair["adapter"] for pair in preferences()} == {name}


def test_runs_on_preferences_add_up():
    path = ROOT / "ch07_instruction" / "preference_runs.csv"
    table = pd.read_csv(path).iloc[1:]
    before = pd.read_csv(path)["right"][0]
    assert list(table["right"] - before) == list(table["learned"] - table["lost"])
    assert table["accuracy"].between(0, 1).all() and len(table) >= 5


def test_conversations_are_what_the_chapter_needs():
    entries = conversations()
    kinds = Counter(entry["kind"] for entry in entries)
    assert len(kinds) >= 12 and min(kinds.values()) >= 60 and kinds["talk"] >= 120
    tested = [e for e in entries if e["split"] == "test"]
    assert sum("accepted" in e and e["kind"] != "talk" for e in tested) == 100
    talks = [e for e in tested if e["kind"] == "talk"]
    assert len(talks) == 30 and all("accepted" in talk for talk in talks)
    for kind in kinds:
        splits = {entry["split"] for entry in entries if entry["kind"] == kind}
        assert splits == {"train", "validation", "test"}, kind
    for entry in entries:
        turns = entry["turns"]
        assert len(turns) % 2 == 0 and all(t == t.strip() != "" for t in turns), entry
        assert (len(turns) > 2) == (entry["kind"] == "talk"), entry
        if "accepted" in entry:
            assert any(holds(turns[-1], core) for core in entry["accepted"]), entry
            wrong = entry["near_miss"]
            assert not any(holds(wrong, core) for core in entry["accepted"]), entry


def test_answers_do_not_repeat_themselves():
    """No answer three times; no first three words in more than 3 % of a kind."""
    answers: dict[str, list[str]] = {}
    for entry in conversations():
        answers.setdefault(entry["kind"], []).extend(entry["turns"][1::2])
    every = Counter(answer for found in answers.values() for answer in found)
    assert max(every.values()) <= 2
    for kind, found in answers.items():
        first = Counter(" ".join(answer.split()[:3]) for answer in found)
        opening, count = first.most_common(1)[0]
        assert count <= max(2, 0.03 * len(found)), (kind, opening)


def test_four_choices_are_fair():
    found = questions()
    assert Counter(question["kind"] for question in found) == {
        "knowledge": 80, "language": 60, "common_sense": 60,
    }  # fmt: skip
    assert Counter(question["answer"] for question in found) == dict.fromkeys(
        range(4), 50
    )
    right = 0.0  # of somebody who takes one of the longest choices each time
    for question in found:
        lengths = [len(choice) for choice in question["choices"]]
        assert len(set(question["choices"])) == 4, question
        if lengths[question["answer"]] == max(lengths):
            right += 1 / lengths.count(max(lengths))
    assert right <= 0.35 * len(found)


def test_results_of_four_choices():
    """What four_choices.py wrote: 1 and 0 for each question, in their order."""
    table = pd.read_csv(ROOT / "ch07_instruction" / "four_choices.csv")
    assert list(table["kind"]) == [question["kind"] for question in questions()]
    assert table[["plain", "tuned", "tiny tales"]].isin([0, 1]).all(axis=None)


def test_what_was_learned_and_forgotten_adds_up():
    table = pd.read_csv(ROOT / "ch07_instruction" / "forgetting.csv")
    right = table["closed right"] + table["talks right"]
    assert list(right - right[0]) == list(table["learned"] - table["forgotten"])
    assert (table["closed right"] <= 100).all() and (table["talks right"] <= 30).all()


def test_the_study_of_forgetting_tunes_as_the_notebook_does():
    folder = ROOT / "ch07_instruction"
    notebook = (folder / "ch07_instruction.ipynb").read_text("utf-8")
    study = (folder / "forgetting.py").read_text("utf-8")
    assert "N_STEPS, RANK, RATE = 100, 16, 1e-3" in notebook
    assert "RANK, RATE, N_STEPS = 16, 1e-3, 100" in study
