"""Chapter 6: messages, padding, the classifier and its training."""

import html
import json
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import TOKENIZER, build
from safetensors.torch import load_file, save_file

import shared.classification as classification
from shared.classification import (
    LABELS,
    Classifier,
    classifier_loss,
    classify,
    encode_labels,
    encode_messages,
    frozen_states,
    label_batch,
    load_classifier,
    load_messages,
    pad_batch,
    paired_difference,
    predict,
    save_classifier,
    train_classifier,
)
from shared.gpt_model import GPTConfig, count_parameters
from shared.llama_model import LlamaConfig
from shared.lora import apply_lora
from shared.pretrained_weights import load_pretrained
from shared.pretraining import evaluate, save_model
from shared.support import COURSE, fetch

GPT = GPTConfig(300, 40, emb_dim=16, n_heads=2, n_layers=3)
LLAMA = LlamaConfig(300, 40, 16, 2, n_kv_heads=1, n_layers=3, hidden_dim=24)
each_model = pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])


def make(config, n_trained: int = 1) -> Classifier:
    return Classifier(build(config), n_trained=n_trained).eval()


def some_rows(n: int = 9) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randint(300, (int(k),)) for k in torch.randint(1, 30, (n,))]


# --- messages -------------------------------------------------------------------------


def test_the_courses_own_messages():
    table = load_messages()
    assert list(table.columns) == ["label", "text", "split"]
    assert 780 <= len(table) <= 880
    assert abs((table["label"] == "spam").mean() - 0.5) < 0.03
    sizes = table["split"].value_counts()
    assert sizes["test"] >= 200 and set(sizes.index) == {"train", "validation", "test"}
    assert not table["text"].duplicated().any() and table["text"].str.len().min() > 1


def write(path, lines: list[str]):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_file_is_read_as_it_is(tmp_path):
    lines = ["text\tlabel\tsplit", 'say "no\tspam\ttest', "NA\u2028née\tham\ttrain"]
    (tmp_path / "t.tsv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    table = load_messages(tmp_path / "t.tsv")
    assert list(table["text"]) == ['say "no', "NA\u2028née"]
    assert list(table["label"]) == ["spam", "ham"]
    assert list(table["split"]) == ["test", "train"]


def test_a_collection_without_splits_is_balanced(tmp_path):
    lines = [f'ham\tmessage "{n} with a quote' for n in range(70)]
    lines += [f"spam\twin {n}" for n in range(30)]
    lines += ["spam\twin 0"] * 9  # copies are dropped
    path = write(tmp_path / "all", lines)
    table = load_messages(path)
    counts = table.groupby(["split", "label"]).size().to_dict()
    expected = {"train": 21, "validation": 3, "test": 6}
    assert counts == {(s, label): n for s, n in expected.items() for label in LABELS}
    assert table.equals(load_messages(path))
    assert not table.equals(load_messages(path, seed=1))
    assert not table["text"].duplicated().any()


def test_the_public_collection_is_fetched_on_request(tmp_path, monkeypatch):
    lines = [f"{label}\t{label} {n}" for label in LABELS for n in range(10)]
    files = {"texts/SMSSpamCollection": write(tmp_path / "SMSSpamCollection", lines)}
    monkeypatch.setattr(classification, "fetch", files.__getitem__)
    assert len(load_messages("sms-spam")) == 20
    assert not fetch.ARTIFACTS["texts/SMSSpamCollection"].default


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["only one column", "of text"], r"\['only one column'\] has not 2 columns"),
        (["label\ttext", "ham\thello", "spam"], r"\['spam'\] has not 2 columns"),
        (["label\tbody", "ham\thello"], "the labels .*'label'.*not .*'ham', 'spam'"),
        (["ham\thello", "eggs\tbye"], "the labels .*'eggs'"),
        (["ham\thello", "ham\tbye"], r"the labels \['ham'\], not \('ham', 'spam'\)"),
        (["ham\thello", "spam\thello"], r"the labels \['ham'\]"),
        (["ham\thello", "spam\tbye"], "10 of each label are needed, there are 1"),
        ([], r"the labels \[\]"),
        (["text\tlabel"], r"the labels \[\]"),
        (
            ["label\ttext\tsplit", "ham\ta\tdev", "spam\tb\ttest"],
            r"the splits \['dev'\], not \('train', 'validation', 'test'\)",
        ),
        (
            ["label\ttext\tsplit", "ham\ta\t", "spam\tb\tTest"],
            r"the splits \['', 'Test'\], not",
        ),
        (['{"label": "ham", "text": "hello"}'], "has not 2 columns, with tabs"),
        (["ham,hello", "spam,bye"], "has not 2 columns, with tabs"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, lines, message):
    path = write(tmp_path / "t.tsv", lines)
    with pytest.raises(ValueError, match=f"t.tsv.* {message}") as error:
        load_messages(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("n", [20, 3000])
@pytest.mark.parametrize("row", ["{text}\tham", "{text}", "{text}\t{text}\t{text}"])
def test_errors_stay_short(n, row, tmp_path):
    rows = [row.format(text=f"a message {i} " * 30) for i in range(n)]
    with pytest.raises(ValueError, match=r"t\.tsv") as error:
        load_messages(write(tmp_path / "t.tsv", rows))
    assert len(str(error.value)) < len(str(tmp_path)) + 400


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.tsv"):
        load_messages(tmp_path / "nothing.tsv")
    (tmp_path / "t.tsv").write_bytes(b"ham\tcaf\xe9")
    with pytest.raises(ValueError, match=r"t\.tsv is not UTF-8"):
        load_messages(tmp_path / "t.tsv")


def test_labels_as_numbers():
    assert encode_labels(["spam", "ham", "spam"]).tolist() == [1, 0, 1]
    assert encode_labels(["good", "bad"], ("bad", "so-so", "good")).tolist() == [2, 0]


@pytest.mark.parametrize(
    "use",
    [
        lambda: encode_labels("spam"), lambda: encode_labels(["a"], "ab"),
        lambda: encode_messages("win a prize", TOKENIZER, 40),
        lambda: Classifier(build(GPT), "spam"), lambda: Classifier(build(GPT), b"ab"),
    ],
)  # fmt: skip
def test_a_text_is_no_collection_of_texts(use):
    with pytest.raises(TypeError, match="must be a collection, not the text"):
        use()


def test_long_and_empty_messages():
    with pytest.raises(ValueError, match="message 1 has [0-9]+ tokens.* context of 3"):
        encode_messages(["a", "see you at six, win a prize"], TOKENIZER, 3)
    rows = encode_messages(["win", "a", ""], TOKENIZER, 3)
    assert [TOKENIZER.decode(row.tolist()) for row in rows[:2]] == ["win", "a"]
    assert rows[2].tolist() == [TOKENIZER.eot_token]


def test_rows_are_padded_on_the_right():
    token_ids, lengths = pad_batch([torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert token_ids[0].tolist() == [5, 6, 7] and token_ids[1, 0] == 8
    assert token_ids.shape == (2, 3) and lengths.tolist() == [3, 1]
    states, lengths = pad_batch([torch.ones(2, 4), torch.ones(3, 4)])
    assert states.shape == (2, 3, 4) and lengths.tolist() == [2, 3]


# --- the classifier -------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("n_trained", [0, 1, 3])
def test_only_the_top_is_trained(config, n_trained):
    classifier = make(config, n_trained)
    trained = [name for name, p in classifier.named_parameters() if p.requires_grad]
    blocks = {int(name.split(".")[2]) for name in trained if ".blocks." in name}
    assert blocks == set(range(3 - n_trained, 3))
    others = {name.split(".")[1] for name in trained} - {"blocks"}
    assert others == {"final_norm", "out_head"}
    assert classifier.model.tok_emb.weight.shape == (300, 16)
    logits = classifier(*pad_batch(some_rows()))
    F.cross_entropy(logits, torch.ones(9, dtype=torch.long)).backward()
    assert all((p.grad is not None) == p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize("n_trained", [4, -1, 1.5, 2.0])
def test_a_model_has_only_so_many_blocks(n_trained):
    with pytest.raises(ValueError, match=f"cannot train {n_trained} of 3 blocks"):
        Classifier(build(GPT), n_trained=n_trained)


@each_model
def test_the_quick_way_equals_the_slow_way(config):
    classifier, rows = make(config), some_rows()
    token_ids, lengths = pad_batch(rows)
    model = classifier.model
    with torch.no_grad():
        slow = classifier(token_ids, lengths)
        quick = classifier(*pad_batch(frozen_states(classifier, rows)))
        whole = model(token_ids)[torch.arange(9), lengths - 1]
    torch.testing.assert_close(quick, slow, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(slow, whole, atol=1e-5, rtol=1e-4)
    assert predict(classifier, rows).equal(whole.argmax(dim=-1))


@pytest.mark.slow
def test_padding_changes_nothing_for_200_messages():
    model, tokenizer = load_pretrained()
    classifier = Classifier(model).eval()
    rows = encode_messages(load_messages()["text"][:200], tokenizer, 8192)
    with torch.no_grad():
        alone = torch.cat([classifier(*pad_batch([row])) for row in rows])
        batched = classifier(*pad_batch(frozen_states(classifier, rows)))
        padded = []
        for start in range(0, 200, 20):
            token_ids, lengths = pad_batch(rows[start : start + 20])
            more = F.pad(token_ids, (0, 50), value=tokenizer.eot_token)
            padded.append(classifier(more, lengths))
    torch.testing.assert_close(batched, alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat(padded), alone, atol=1e-4, rtol=0)


def modes(classifier) -> list[bool]:
    return [part.training for part in classifier.modules()]


WITH_DROPOUT = GPTConfig(300, 40, emb_dim=16, n_heads=2, n_layers=3, dropout=0.5)


@pytest.mark.parametrize("n_trained", [0, 1, 3])
@pytest.mark.parametrize(
    "use",
    [
        lambda c: frozen_states(c, some_rows()),
        lambda c: [predict(c, some_rows())],
        lambda c: [torch.tensor(classify(c, TOKENIZER, "win a prize")[1])],
    ],
    ids=["frozen_states", "predict", "classify"],
)
def test_nothing_is_dropped_out_and_every_mode_comes_back(use, n_trained):
    classifier = make(WITH_DROPOUT, n_trained)
    expected = use(classifier)
    classifier.train()
    classifier.model.blocks[2].eval()
    before = modes(classifier)
    for ours, theirs in zip(use(classifier), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert modes(classifier) == before


@pytest.mark.parametrize("use", [frozen_states, predict])
def test_every_mode_comes_back_after_an_error(use):
    classifier = make(WITH_DROPOUT).train()
    classifier.model.blocks[2].eval()
    before = modes(classifier)
    with pytest.raises(IndexError):
        use(classifier, [torch.tensor([1, 999])])
    assert modes(classifier) == before


# --- its training ---------------------------------------------------------------------


def test_the_loss_is_that_of_each_message_alone():
    classifier, rows = make(LLAMA), some_rows()
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1])
    pairs = list(zip(rows, labels, strict=True))
    with torch.no_grad():
        total, count = classifier_loss(classifier, *label_batch(pairs))
        alone = [classifier(row[None], torch.tensor([len(row)])) for row in rows]
    by_hand = sum(-x[0].log_softmax(-1)[y] for x, y in zip(alone, labels, strict=True))
    torch.testing.assert_close(total, by_hand, atol=1e-4, rtol=1e-4)
    assert count == 9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_is_summed_precisely(seed):
    torch.manual_seed(seed)
    classifier = make(LLAMA).to(torch.bfloat16)
    rows = some_rows(64)
    labels = torch.randint(2, (64,))
    batch = label_batch(list(zip(rows, labels, strict=True)))
    with torch.no_grad():
        logits = classifier(*batch[:2]).double()
        expected = F.cross_entropy(logits, labels, reduction="sum").item()
        total, _ = classifier_loss(classifier, *batch)
    assert total.item() == pytest.approx(expected, rel=1e-5)


def loss_on(classifier: Classifier, rows, labels) -> float:
    pairs = list(zip(rows, labels, strict=True))
    return evaluate(classifier, [label_batch(pairs)], classifier_loss)


def test_training_learns_and_keeps_the_best_epoch():
    classifier, rows = make(LLAMA), some_rows(48)
    labels = torch.tensor([row[-1] % 2 for row in rows])
    states = frozen_states(classifier, rows)
    good = (states, labels)
    before = count_parameters(classifier, trainable=True)
    history = train_classifier(classifier, good, good, epochs=25, learning_rate=1e-2)
    assert len(history) == 25
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    best = min(record["val_loss"] for record in history)
    assert loss_on(classifier, *good) == pytest.approx(best, rel=1e-4)
    right = (predict(classifier, states) == labels).float().mean().item()
    assert right in [record["val_accuracy"] for record in history]
    assert count_parameters(classifier, trainable=True) == before


def test_training_goes_back_when_it_gets_worse():
    classifier, rows = make(LLAMA), some_rows(48)
    labels = torch.tensor([row[-1] % 2 for row in rows])
    states = frozen_states(classifier, rows)
    good, wrong = (states, labels), (states, 1 - labels)
    history = train_classifier(classifier, good, wrong, epochs=10, learning_rate=1e-2)
    losses = [record["val_loss"] for record in history]
    assert losses[-1] > min(losses)
    assert loss_on(classifier, *wrong) == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_training_gives_every_mode_back(training):
    classifier = make(WITH_DROPOUT).train(training)
    classifier.model.blocks[0].train(not training)
    before = modes(classifier)
    pair = (some_rows(), torch.ones(9, dtype=torch.long))
    train_classifier(classifier, pair, pair, epochs=2)
    assert modes(classifier) == before


def test_training_from_token_ids_equals_training_from_states():
    rows = some_rows(24)
    labels = torch.tensor([row[-1] % 2 for row in rows])
    histories = []
    for prepare in (lambda classifier, rows: rows, frozen_states):
        classifier = make(LLAMA)
        pair = (prepare(classifier, rows), labels)
        torch.manual_seed(5)  # the order of the messages
        histories.append(train_classifier(classifier, pair, pair, epochs=2))
    for from_ids, from_states in zip(*histories, strict=True):
        assert from_ids == pytest.approx(from_states, rel=1e-3)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_something(batch_size):
    pair = (some_rows(), torch.zeros(9, dtype=torch.long))
    with pytest.raises(ValueError, match=f"positive.*batch_size={batch_size}"):
        train_classifier(make(GPT), pair, pair, batch_size=batch_size)


def test_paired_difference():
    ours, theirs = torch.tensor([1, 1, 0, 1]).bool(), torch.tensor([0, 1, 0, 1]).bool()
    expected = "+25.0 points, between -24.0 and +74.0"
    assert paired_difference(ours, theirs) == expected


# --- its file -------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [LABELS, ("bad", "so-so", "good")])
def test_a_classifier_comes_back(tmp_path, labels):
    save_model(build(GPT), tmp_path / "base", TOKENIZER)
    model, _ = load_pretrained(tmp_path / "base")
    classifier = Classifier(model, labels, n_trained=2).eval()
    with torch.no_grad():
        for p in classifier.parameters():  # as if it had been trained
            p += p.requires_grad * 0.1 * torch.randn_like(p)
    save_classifier(classifier, str(tmp_path / "base"), tmp_path / "filter")
    again, tokenizer = load_classifier(tmp_path / "filter")
    assert again.labels == labels and again.n_frozen == 1
    answer = classify(again, tokenizer, "win a prize")
    assert answer == classify(classifier, TOKENIZER, "win a prize")
    assert answer[0] in labels and 1 / len(labels) <= answer[1] <= 1
    with pytest.raises(ValueError, match="context of 40"):
        classify(again, tokenizer, "win " * 100)


def saved(tmp_path, n_trained: int = 2) -> Classifier:
    """Save a classifier of a model that is saved, too; return it."""
    save_model(build(GPT), tmp_path / "base", TOKENIZER)
    classifier = Classifier(load_pretrained(tmp_path / "base")[0], n_trained=n_trained)
    with torch.no_grad():
        for p in classifier.parameters():
            p += p.requires_grad * 0.1 * torch.randn_like(p)
    save_classifier(classifier.eval(), str(tmp_path / "base"), tmp_path / "filter")
    return classifier


@pytest.mark.parametrize("n_trained", [0, 1, 3])
@pytest.mark.parametrize("frozen", ["", "out_head", "blocks"])
def test_what_was_trained_comes_back_frozen_or_not(n_trained, frozen, tmp_path):
    classifier = saved(tmp_path, n_trained)
    expected = classifier(*pad_batch(some_rows()))
    for name, p in classifier.named_parameters():
        p.requires_grad_(p.requires_grad and frozen not in name)
    save_classifier(classifier, str(tmp_path / "base"), tmp_path / "filter")
    again, _ = load_classifier(tmp_path / "filter")
    assert torch.equal(again(*pad_batch(some_rows())), expected)


def with_another_head(classifier: Classifier) -> None:
    classifier.model.out_head = torch.nn.Linear(16, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: apply_lora(c), "save_adapter.*merge_lora"),
        (lambda c: apply_lora(c, targets=("out_head",)), "out_head.*merge_lora"),
        (with_another_head, "out_head"),
        (lambda c: c.model.tok_emb.requires_grad_(True), "tok_emb"),
    ],
)
def test_what_would_not_come_back_is_not_saved(change, message, tmp_path):
    classifier = saved(tmp_path)
    change(classifier)
    with pytest.raises(ValueError, match=message):
        save_classifier(classifier, str(tmp_path / "base"), tmp_path / "filter")
    load_classifier(tmp_path / "filter")  # the good one is still there


HEAD, NORM = "model.out_head.weight", "model.final_norm.bias"
BLOCK = "model.blocks.0.norm1.bias"


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        ({HEAD: None}, {}, HEAD), ({HEAD: None, NORM: None}, {}, NORM),
        ({HEAD: torch.zeros(3, 16)}, {}, HEAD), ({"x": torch.zeros(2)}, {}, "x"),
        ({BLOCK: torch.zeros(16)}, {}, BLOCK), ({}, {"n_trained": 3}, "blocks.0"),
        ({}, {"n_trained": 9}, "cannot train 9"), ({}, {"labels": "ab"}, "collection"),
        ({}, {"labels": ["a", "b", "c"]}, "out_head"), ({}, {"name": "x"}, "no model"),
        ({}, {"labels": None}, ""), ({}, {"name": 5}, ""),
        ({}, {"n_trained": 1.5}, "cannot train 1.5"),
    ],
)  # fmt: skip
def test_a_damaged_classifier_is_refused(tensors, settings, message, tmp_path):
    saved(tmp_path)
    folder = tmp_path / "filter"
    changed = load_file(folder / "trained.safetensors") | tensors
    changed = {name: tensor for name, tensor in changed.items() if tensor is not None}
    save_file(changed, folder / "trained.safetensors")
    stored = json.loads((folder / "settings.json").read_text()) | settings
    (folder / "settings.json").write_text(json.dumps(stored))
    begin = f"^{re.escape(str(folder))} holds no classifier.*{message}"
    with pytest.raises(ValueError, match=begin):
        load_classifier(folder)


@pytest.mark.parametrize("settings", ["[]", "{}", "7", '{"rank": 2}'])
def test_other_settings_than_a_classifiers(settings, tmp_path):
    saved(tmp_path)
    (tmp_path / "filter" / "settings.json").write_text(settings)
    with pytest.raises(ValueError, match="filter holds no classifier"):
        load_classifier(tmp_path / "filter")


def test_a_classifier_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="four.*settings.json is missing"):
        load_classifier(tmp_path / "four")


# --- the figures carry the numbers of the cells beside them ---------------------------


def test_the_figure_of_two_logits():
    path = COURSE / "ch06_classification" / "figures" / "two_logits.svg"
    svg = html.unescape(path.read_text(encoding="utf-8")).replace("\u2212", "-")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    head = torch.tensor([[0.5, 1.0, 0.0], [0.5, -1.0, 0.0]])
    logits = head @ torch.tensor([1.0, -1.0, 2.0])
    probabilities = logits.softmax(dim=-1)
    numbers = [f"{x:.2f}" for x in [*probabilities, *-probabilities.log()]]
    assert sorted(t for t in texts if re.fullmatch(r"\d\.\d\d", t)) == sorted(numbers)
    sums = [t.rpartition("= ")[2] for t in texts if " = " in t]
    assert sums == [f"{x:g}" for x in logits.tolist()]
    assert f"difference {logits.diff().item():g}" in texts
