"""Chapter 6: messages, padding, the classifier and its training."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import shared.classification as classification
from shared import fetch
from shared.classification import (
    LABELS,
    Classifier,
    classify,
    compared,
    encode_messages,
    frozen_states,
    load_classifier,
    load_messages,
    logits_of,
    measure,
    pad_batch,
    save_classifier,
    train_classifier,
)
from shared.gpt_model import GPTConfig, GPTModel, count_parameters
from shared.llama_model import LlamaConfig, LlamaModel
from shared.pretrained_weights import load_pretrained, tokenizer_for
from shared.pretraining import save_model
from shared.text_data import END_OF_TEXT, BPETokenizer

GPT = GPTConfig(300, 40, emb_dim=16, n_heads=2, n_layers=3)
LLAMA = LlamaConfig(300, 40, 16, 2, 1, 3, hidden_dim=24)
each_model = pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])
TOKENIZER = BPETokenizer.train("win a prize now, see you at six", 260, [END_OF_TEXT])


def build(config, n_trained: int = 1) -> Classifier:
    torch.manual_seed(0)
    model = (GPTModel if isinstance(config, GPTConfig) else LlamaModel)(config)
    return Classifier(model, n_trained=n_trained).eval()


def some_rows(n: int = 9) -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(300, (int(k),)).tolist() for k in torch.randint(1, 30, (n,))]


# --- messages -------------------------------------------------------------------------


def test_the_courses_own_messages():
    table = load_messages()
    assert (
        list(table.columns) == ["label", "text", "split"] and 780 <= len(table) <= 880
    )
    assert abs((table["label"] == "spam").mean() - 0.5) < 0.03
    sizes = table["split"].value_counts()
    assert sizes["test"] >= 200 and set(sizes.index) == {"train", "validation", "test"}
    assert not table["text"].duplicated().any() and table["text"].str.len().min() > 1


def write(path, lines: list[str]):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_collection_without_splits_is_balanced(tmp_path):
    lines = [f'ham\tmessage "{n} with a quote' for n in range(70)]
    lines += [f"spam\twin {n}" for n in range(30)] + [
        "spam\twin 0"
    ] * 9  # copies are dropped
    path = write(tmp_path / "all", lines)
    table = load_messages(path)
    counts = table.groupby(["split", "label"]).size().to_dict()
    expected = {"train": 21, "validation": 3, "test": 6}
    assert counts == {
        (split, label): n for split, n in expected.items() for label in LABELS
    }
    assert table.equals(load_messages(path)) and not table.equals(
        load_messages(path, seed=1)
    )
    assert not table["text"].duplicated().any()


def test_the_public_collection_is_fetched_on_request(tmp_path, monkeypatch):
    lines = [f"{label}\t{label} {n}" for label in LABELS for n in range(10)]
    path = write(tmp_path / "SMSSpamCollection", lines)
    monkeypatch.setattr(
        classification, "fetch", {"texts/SMSSpamCollection": path}.__getitem__
    )
    assert len(load_messages("sms-spam")) == 20
    assert not fetch.ARTIFACTS["texts/SMSSpamCollection"].default


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["only one column", "of text"], "lacks the columns text"),
        (["label\tbody", "ham\thello"], "lacks the columns text"),
        (
            ["ham\thello", "eggs\tbye"],
            "unknown labels: 'eggs'; there are only ham and spam",
        ),
        (["ham\thello", "ham\tbye"], "no messages with the label spam"),
        (
            ["ham\thello", "spam\tbye"],
            "needs 10 different messages of each label, has 1",
        ),
        (
            ["ham\thello", "spam\thello"],
            "needs 10 different messages of each label, has 0",
        ),
    ],
)
def test_tables_that_do_not_fit(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        load_messages(write(tmp_path / "t.tsv", lines))


def test_long_and_empty_messages():
    with pytest.warns(UserWarning, match="1 messages were cut to 3 tokens"):
        rows = encode_messages(["see you at six, win a prize", "a", ""], TOKENIZER, 3)
    assert [len(row) for row in rows] == [3, 1, 1] and rows[2] == [TOKENIZER.eot_token]
    ids, lengths = pad_batch(rows, 7)
    assert (
        ids.shape == (3, 3)
        and lengths.tolist() == [3, 1, 1]
        and ids[1, 1:].tolist() == [7, 7]
    )


# --- the classifier -------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("n_trained", [0, 1, 3])
def test_only_the_top_is_trained(config, n_trained):
    classifier = build(config, n_trained)
    trained = [name for name, p in classifier.named_parameters() if p.requires_grad]
    blocks = {int(name.split(".")[2]) for name in trained if ".blocks." in name}
    assert blocks == set(range(3 - n_trained, 3))
    assert {name.split(".")[1] for name in trained} - {"blocks"} == {
        "final_norm",
        "out_head",
    }
    assert classifier.model.tok_emb.weight.shape == (300, 16)
    ids, lengths = pad_batch(some_rows(), 0)
    F.cross_entropy(
        classifier(ids, lengths), torch.ones(9, dtype=torch.long)
    ).backward()
    assert all((p.grad is not None) == p.requires_grad for p in classifier.parameters())


@each_model
def test_the_quick_way_equals_the_slow_way(config):
    classifier, rows = build(config), some_rows()
    with torch.no_grad():
        slow = classifier(*pad_batch(rows, 0))
        quick = logits_of(classifier, frozen_states(classifier, rows, 0))
        model, (ids, lengths) = classifier.model, pad_batch(rows, 0)
        whole = model.out_head(model.hidden_states(ids))[torch.arange(9), lengths - 1]
    torch.testing.assert_close(quick, slow, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(slow, whole, atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing_for_200_messages():
    tokenizer, classifier = tokenizer_for(), Classifier(load_pretrained()).eval()
    rows = encode_messages(load_messages()["text"][:200], tokenizer, 99)
    pad = tokenizer.eot_token
    with torch.no_grad():
        alone = torch.cat([classifier(*pad_batch([row], pad)) for row in rows])
        batched = logits_of(classifier, frozen_states(classifier, rows, pad))
        padded = []
        for start in range(0, 200, 20):
            ids, lengths = pad_batch(rows[start : start + 20], pad)
            padded.append(classifier(F.pad(ids, (0, 50), value=pad), lengths))
    torch.testing.assert_close(batched, alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat(padded), alone, atol=1e-4, rtol=0)


def test_training_learns_and_keeps_the_best_epoch():
    classifier = build(LLAMA)
    rows = some_rows(48)
    labels = torch.tensor([row[-1] % 2 for row in rows])
    states = frozen_states(classifier, rows, 0)
    pair = (states, labels)
    before = count_parameters(classifier, trainable=True)
    history = train_classifier(classifier, pair, pair, epochs=25, learning_rate=1e-2)
    assert (
        len(history) == 25
        and history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    )
    best = min(record["val_loss"] for record in history)
    assert measure(classifier, pair)["loss"] == pytest.approx(best, rel=1e-4)
    assert count_parameters(classifier, trainable=True) == before
    wrong = (states, 1 - labels)  # validation gets worse: the first epoch is the best
    again = build(LLAMA)
    history = train_classifier(again, pair, wrong, epochs=10, learning_rate=1e-2)
    losses = [record["val_loss"] for record in history]
    assert losses[-1] > min(losses)
    assert measure(again, wrong)["loss"] == pytest.approx(min(losses), rel=1e-4)


def test_a_classifier_comes_back(tmp_path):
    classifier = build(GPT)
    with torch.no_grad():
        for p in classifier.parameters():
            # As if it had been trained
            p += p.requires_grad * 0.1 * torch.randn_like(p)
    torch.manual_seed(0)
    save_model(GPTModel(GPT), tmp_path / "base")
    save_classifier(classifier, str(tmp_path / "base"), tmp_path / "filter")
    again = load_classifier(tmp_path / "filter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (
            classify(c, TOKENIZER, "win a prize") for c in (classifier, again)
        )
    assert first == second and first[0] in LABELS and 0.5 <= first[1] <= 1
    with pytest.warns(UserWarning, match="cut to 40 tokens"):
        classify(again, TOKENIZER, "win " * 100)


def test_paired_difference():
    ours, theirs = torch.tensor([1, 1, 0, 1]).bool(), torch.tensor([0, 1, 0, 1]).bool()
    assert compared(ours, theirs) == "+25.0 points, between -24.0 and +74.0"


def test_other_labels_come_back(tmp_path):
    torch.manual_seed(0)
    save_model(GPTModel(GPT), tmp_path / "base")
    three = Classifier(
        load_pretrained(tmp_path / "base"), ("bad", "so-so", "good")
    ).eval()
    save_classifier(three, str(tmp_path / "base"), tmp_path / "three")
    again = load_classifier(tmp_path / "three")
    assert again.labels == ("bad", "so-so", "good")
    assert classify(again, TOKENIZER, "win") == classify(three, TOKENIZER, "win")
    with pytest.raises(ValueError, match="nothing is saved in"):
        load_classifier(tmp_path / "four")
