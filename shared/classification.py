"""A spam filter made from a language model. You train one of its thirty blocks on
messages that were written for this course, see where it still fails, and at the end you
type a message of your own.

Generated from ch06_classification/ch06_classification.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from shared.gpt_model import Decoder
from shared.pretrained_weights import load_pretrained
from shared.pretraining import TrainConfig, Trainer, train
from shared.support import COURSE, misfits, refuse_text
from shared.support.fetch import fetch
from shared.support.files import read_trained, save_trained
from shared.support.modules import check_kept, evaluating, precise
from shared.text_data import Tokenizer, load_text

__all__ = [
    "encode_labels", "encode_messages", "pad_batch", "Classifier", "frozen_states",
    "classifier_loss", "label_batch", "predict", "train_classifier",
    "paired_difference", "classify", "save_classifier", "load_classifier",
    "load_messages",
]  # fmt: skip

# Section 6.2: Baseline: how far does counting words get?
LABELS = ("ham", "spam")
SPLITS = ("train", "validation", "test")


def encode_labels(labels: Iterable[str], names: Sequence[str] = LABELS) -> torch.Tensor:
    """Return the number of each label (N,) int64: 0 for ham, 1 for spam."""
    refuse_text(labels=labels, names=names)
    return torch.tensor([names.index(label) for label in labels])


# Section 6.3: Padding: which token is the last one?
def encode_messages(
    texts: Iterable[str], tokenizer: Tokenizer, context_length: int
) -> list[torch.Tensor]:
    """Return the token ids of each text, tensors (T_i,) int64, at least one in each.

    Raises ValueError for a text with more than context_length tokens.
    """
    refuse_text(texts=texts)
    rows = [tokenizer.encode_ordinary(text) or [tokenizer.eot_token] for text in texts]
    for n, row in enumerate(rows):
        if len(row) > context_length:
            most = f"more than the context of {context_length}"
            raise ValueError(f"message {n} has {len(row)} tokens, {most}")
    return [torch.tensor(row) for row in rows]


def pad_batch(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows (T_i, ...) filled up on the right to (B, T, ...), and lengths (B,).

    Behind a causal mask, what stands in the padding is never seen.
    """
    lengths = torch.tensor([len(row) for row in rows])
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), lengths


# Section 6.4: The head: how does a vector become a decision?
class Classifier(nn.Module):
    """A language model with a new head for classes, read at each row's last token.

    Only the last `n_trained` blocks, the final norm and the head are trained; the
    blocks below are frozen, and drop nothing out. The model that is given is changed,
    not copied. `labels` names the classes. Raises ValueError for more trained blocks
    than there are.
    """

    def __init__(
        self, model: Decoder, labels: Sequence[str] = LABELS, n_trained: int = 1
    ):
        super().__init__()
        refuse_text(labels=labels)
        if not isinstance(n_trained, int) or not 0 <= n_trained <= len(model.blocks):
            raise ValueError(f"cannot train {n_trained} of {len(model.blocks)} blocks")
        self.model = model
        self.labels = tuple(labels)
        self.n_frozen = len(model.blocks) - n_trained
        model.requires_grad_(False)
        head = nn.Linear(model.config.emb_dim, len(self.labels))
        model.out_head = head.to(model.device, model.tok_emb.weight.dtype)
        for weight in self.trained().values():
            weight.requires_grad_(True)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return, by name, the weights that training changes, frozen or not by now."""
        upper = range(self.n_frozen, len(self.model.blocks))
        parts = ("final_norm", "out_head", *(f"blocks.{n}" for n in upper))
        begin = tuple(f"model.{part}." for part in parts)
        return {n: p for n, p in self.named_parameters() if n.startswith(begin)}

    def run(self, x: torch.Tensor, blocks: Iterable[nn.Module]) -> torch.Tensor:
        """Return x (B, T, D) after some of the model's blocks."""
        places = self.model.places(torch.arange(x.shape[1], device=x.device))
        for block in blocks:
            x = block(x, None, places)
        return x

    @torch.no_grad()
    def lower(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return what the frozen part makes of token_ids (B, T): (B, T, D)."""
        token_ids = token_ids.to(self.model.device)
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        with evaluating(self.model):
            x = self.model.embed(token_ids, positions)
            return self.run(x, self.model.blocks[: self.n_frozen])

    def upper(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of what lower gave for these lengths."""
        x = self.run(x, self.model.blocks[self.n_frozen :])
        last = x[torch.arange(len(x)), lengths - 1]  # (B, D)
        return self.model.out_head(self.model.final_norm(last))

    def forward(self, rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of padded rows with these lengths (B,).

        Rows are token ids (B, T), or what frozen_states made of them (B, T, D).
        """
        x = rows if rows.is_floating_point() else self.lower(rows)
        return self.upper(x, lengths)


# Section 6.5: Frozen layers: why compute twice what never changes?
def frozen_states(
    classifier: Classifier, rows: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Return what the frozen part makes of each row of token ids: (T_i, D) each."""
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    states: dict[int, torch.Tensor] = {}
    for start in range(0, len(rows), 32):
        some = by_length[start : start + 32]
        token_ids, _ = pad_batch([rows[i] for i in some])
        for i, x in zip(some, classifier.lower(token_ids), strict=True):
            states[i] = x[: len(rows[i])].clone()
    return [states[i] for i in range(len(rows))]


# Section 6.6: Training: how does it learn from the labels?
def classifier_loss(
    model: nn.Module, rows: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Return the summed cross-entropy in nats of labels (B,), and their number."""
    logits = model(rows, lengths)
    labels = labels.to(logits.device)
    return F.cross_entropy(precise(logits), labels, reduction="sum"), len(labels)


def label_batch(pairs: list[tuple]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a batch for classifier_loss, made of (row, label) pairs."""
    rows, labels = zip(*pairs, strict=True)
    return *pad_batch(rows), torch.stack(labels)


@torch.no_grad()
def predict(classifier: nn.Module, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the likeliest class (N,) int64 of each row, in evaluation mode."""
    batches = [pad_batch(rows[i : i + 64]) for i in range(0, len(rows), 64)]
    with evaluating(classifier):
        return torch.cat([classifier(*batch).argmax(dim=-1) for batch in batches]).cpu()


def train_classifier(
    classifier: nn.Module,
    train_set: tuple[Sequence[torch.Tensor], torch.Tensor],
    val_set: tuple[Sequence[torch.Tensor], torch.Tensor],
    *,
    epochs: int = 6,
    learning_rate: float = 3e-4,
    batch_size: int = 16,
) -> list[dict[str, float]]:
    """Train on (rows, labels); keep the epoch that is best on the validation set.

    Rows are what Classifier.forward takes, before padding. Returns a record for each
    epoch: train_loss, val_loss, val_accuracy.
    """
    pairs: Any = list(zip(*train_set, strict=True))
    loader = DataLoader(pairs, batch_size, shuffle=True, collate_fn=label_batch)
    val_rows = [val_set[0][i : i + 64] for i in range(0, len(val_set[0]), 64)]
    config = TrainConfig(epochs * len(loader), learning_rate, final_share=0.05)
    trainer = Trainer(classifier, config, loss=classifier_loss)
    history: list[dict[str, float]] = []
    total = 0.0
    for record in train(trainer, (batch for _ in range(epochs) for batch in loader)):
        total += record["loss"] * record["step_tokens"]
        if record["step"] % len(loader):
            continue  # the epoch is not over
        with torch.no_grad(), evaluating(classifier):
            val_logits = torch.cat([classifier(*pad_batch(rows)) for rows in val_rows])
        val_logits = precise(val_logits)
        val_labels = val_set[1].to(val_logits.device)
        val_loss = F.cross_entropy(val_logits, val_labels).item()
        right = val_logits.argmax(dim=-1) == val_labels
        history.append({"train_loss": total / len(pairs), "val_loss": val_loss})
        history[-1]["val_accuracy"] = right.float().mean().item()
        if val_loss == min(past["val_loss"] for past in history):
            kept = [p.detach().clone() for p in trainer.weights]
        total = 0.0
    with torch.no_grad():
        for weight, value in zip(trainer.weights, kept, strict=True):
            weight.copy_(value)
    return history


# Section 6.7: Test: is it better, and how sure can we be?
def paired_difference(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Return the paired difference of two accuracies with its 95 % interval, in words.

    Both are bool (N,): whether each answer to the same N questions is right.
    """
    points = 100 * (ours.float() - theirs.float())  # -100, 0 or 100 for each
    mean = points.mean().item()
    half = 1.96 * points.std().item() / len(points) ** 0.5
    return f"{mean:+.1f} points, between {mean - half:+.1f} and {mean + half:+.1f}"


# Section 6.9: Using it: your own messages
@torch.no_grad()
def classify(
    classifier: Classifier, tokenizer: Tokenizer, text: str
) -> tuple[str, float]:
    """Return the likeliest label for a text, and the probability that it gets.

    In evaluation mode. Raises ValueError for a text that does not fit the context.
    """
    rows = encode_messages([text], tokenizer, classifier.model.config.context_length)
    with evaluating(classifier):
        logits = precise(classifier(*pad_batch(rows))[0])
    probability, label = logits.softmax(dim=-1).max(dim=-1)
    return classifier.labels[label], probability.item()


def save_classifier(classifier: Classifier, name: str, folder: str | Path) -> None:
    """Write what training changes, and the name (for load_pretrained) of the rest.

    Raises ValueError for weights that load_classifier would not know: adapters, or
    others that can be trained and are not part of Classifier.trained.
    """
    model, kept = classifier.model, classifier.trained()
    n_trained = len(model.blocks) - classifier.n_frozen
    kind: Any = type(model)
    with torch.device("meta"):
        fresh = Classifier(kind(model.config), classifier.labels, n_trained)
    check_kept(fresh, classifier, kept)
    settings = {"name": name, "labels": classifier.labels, "n_trained": n_trained}
    save_trained(kept, folder, settings)


def load_classifier(folder: str | Path) -> tuple[Classifier, Tokenizer]:
    """Return what save_classifier wrote, around the model that it names; its tokenizer.

    Raises as read_trained and load_pretrained do, and ValueError, beginning with the
    folder, for other settings, and for tensors that are missing, unknown or misshapen.
    """
    weights, settings = read_trained(folder)
    try:
        model, tokenizer = load_pretrained(settings["name"])
        classifier = Classifier(model, settings["labels"], settings["n_trained"])
        if wrong := misfits(classifier.trained(), weights):
            raise ValueError(f"{wrong[0]} is missing, unknown or misshapen")
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} holds no classifier: {error}") from error
    classifier.load_state_dict(weights, strict=False)
    return classifier.eval(), tokenizer


def load_messages(path: str | Path | None = None, *, seed: int = 123) -> pd.DataFrame:
    """Return messages as a table with the columns label (ham or spam), text and split.

    Without a path, the course's own; "sms-spam" downloads the SMS Spam Collection of
    the UCI repository. A file is tab-separated; without a header it has label and text.
    Where there is no split, copies are dropped, both labels are cut down to equal
    numbers and split 70/10/20 into train, validation and test, at random with `seed`.

    Raises FileNotFoundError without a file; ValueError, beginning with its path, for
    text that is not UTF-8, rows of unequal length, unknown splits, and labels other
    than ham and spam (to be split: both at least 10 times); and as fetch does.
    """
    own = COURSE / "ch06_classification" / "messages.tsv"
    path = fetch("texts/SMSSpamCollection") if path == "sms-spam" else Path(path or own)
    rows = [line.split("\t") for line in load_text(path).split("\n") if line]
    header = ["label", "text"]
    if rows and set(header) <= set(rows[0]):
        header = rows.pop(0)
    if wrong := [row for row in rows if len(row) != len(header)]:
        shown = f"{reprlib.repr(wrong[0])} has not {len(header)} columns"
        raise ValueError(f"{path}: {shown}, with tabs between them")
    table = pd.DataFrame(rows, columns=header)
    ready = "split" in header
    table = table if ready else table.drop_duplicates("text")
    for column, names in {"label": LABELS, "split": SPLITS}.items():
        found = set(table.get(column, names))
        unknown = sorted(found - set(names))
        if unknown or (column == "label" and len(found) < 2):
            shown = reprlib.repr(unknown or sorted(found))
            raise ValueError(f"{path} has the {column}s {shown}, not {names}")
    if ready:
        return table
    smallest = int(table["label"].value_counts().min())
    if smallest < 10:
        raise ValueError(f"{path}: 10 of each label are needed, there are {smallest}")
    splits = ["train"] * int(0.7 * smallest) + ["validation"] * int(0.1 * smallest)
    splits += ["test"] * (smallest - len(splits))
    # First all ham, then all spam, then mixed.
    table = table.groupby("label").sample(smallest, random_state=seed)
    table = table.assign(split=2 * splits)
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)
