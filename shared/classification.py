"""A spam filter made from a language model: a few per cent of its weights trained for a
minute, on messages that were written for this course.

Generated from ch06_classification/ch06_classification.ipynb by `python -m shared.export`;
edit the notebook, not this file.
"""

import csv
import json
import math
import sys
import warnings
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from shared.fetch import COURSE, fetch
from shared.gpt_model import Decoder
from shared.pretrained_weights import load_pretrained
from shared.pretraining import write_folder
from shared.text_data import Tokenizer

__all__ = [
    "LABELS", "load_messages", "encode_messages", "pad_batch", "Classifier",
    "frozen_states", "logits_of", "measure", "train_classifier", "compared",
    "classify", "save_trained", "read_trained", "save_classifier",
    "load_classifier",
]  # fmt: skip

LABELS = ("ham", "spam")


def load_messages(path: str | Path | None = None, *, seed: int = 123) -> pd.DataFrame:
    """Return messages as a table with the columns label (ham or spam), text and split.

    Without a path, the course's own; "sms-spam" downloads the SMS Spam Collection of
    the UCI repository. A file is tab-separated; without a header it has label and text.
    Where there is no split, copies are dropped, both labels are cut down to equal
    numbers and split 70/10/20 into train, validation and test, at random with `seed`.

    Raises ValueError for missing columns, an unknown label, or a label without messages
    (to be split: with fewer than 10), and as fetch does.
    """
    own = COURSE / "ch06_classification" / "messages.tsv"
    path = fetch("texts/SMSSpamCollection") if path == "sms-spam" else Path(path or own)
    with path.open(encoding="utf-8") as file:
        header = file.readline().rstrip("\r\n").split("\t")
    named = "label" in header or "text" in header
    table = pd.read_csv(
        path, sep="\t", quoting=csv.QUOTE_NONE, dtype=str, keep_default_na=False,
        header=0 if named else None,
        names=None if named else ["label", "text"][: len(header)],
    )  # fmt: skip
    if missing := {"label", "text"} - set(table.columns):
        names = ", ".join(sorted(missing))
        raise ValueError(
            f"{path} lacks the columns {names} (columns are separated by tabs)"
        )
    if unknown := set(table["label"]) - set(LABELS):
        names = ", ".join(map(repr, sorted(unknown)))
        raise ValueError(
            f"{path} has unknown labels: {names}; there are only ham and spam"
        )
    if empty := set(LABELS) - set(table["label"]):
        raise ValueError(f"{path} has no messages with the label {min(empty)}")
    if "split" in table.columns:
        return table
    # Else copies would stand in both train and test
    table = table.drop_duplicates("text")
    smallest = min(int((table["label"] == label).sum()) for label in LABELS)
    if smallest < 10:
        raise ValueError(
            f"{path} needs 10 different messages of each label, has {smallest}"
        )
    splits = ["train"] * int(0.7 * smallest) + ["validation"] * int(0.1 * smallest)
    splits += ["test"] * (smallest - len(splits))
    # First all ham, then spam
    table = table.groupby("label").sample(smallest, random_state=seed)
    table = table.assign(split=2 * splits)
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


def encode_messages(texts, tokenizer: Tokenizer, max_tokens: int) -> list[list[int]]:
    """Return the token ids of each text, at least one; warn if max_tokens cuts any."""
    rows = [tokenizer.encode_ordinary(text) or [tokenizer.eot_token] for text in texts]
    if n_long := sum(len(row) > max_tokens for row in rows):
        warnings.warn(
            f"{n_long} messages were cut to {max_tokens} tokens", stacklevel=2
        )
    return [row[:max_tokens] for row in rows]


def pad_batch(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids (B, T), filled up on the right with pad_id, and true lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    return nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], True, pad_id
    ), lengths


class Classifier(nn.Module):
    """A language model with a new head for classes, read at the last token of each row.

    Only the last `n_trained` blocks, the final norm and the head are trained; the
    blocks below are frozen. The model that is given is changed, not copied. `labels`
    names the classes.
    """

    def __init__(
        self, model: Decoder, labels: tuple[str, ...] = LABELS, n_trained: int = 1
    ):
        super().__init__()
        self.model, self.n_frozen = model, len(model.blocks) - n_trained
        self.labels = tuple(labels)
        model.requires_grad_(False)
        weight = model.tok_emb.weight
        head = nn.Linear(model.config.emb_dim, len(self.labels))
        model.out_head = head.to(weight.device, weight.dtype)
        for part in (*model.blocks[self.n_frozen :], model.final_norm, model.out_head):
            part.requires_grad_(True)

    def lower(self, ids: torch.Tensor) -> torch.Tensor:
        """Return what the frozen part makes of ids (B, T): (B, T, D)."""
        with torch.no_grad():
            x = self.model.embed(ids.to(self.model.tok_emb.weight.device))
            for block in self.model.blocks[: self.n_frozen]:
                x = block(x)
        return x

    def upper(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of what lower gave, for these lengths (B,)."""
        for block in self.model.blocks[self.n_frozen :]:
            x = block(x)
        last = x[torch.arange(len(x)), lengths - 1]  # (B, D)
        return self.model.out_head(self.model.final_norm(last))

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes) of ids (B, T) with these lengths (B,)."""
        return self.upper(self.lower(ids), lengths)


def frozen_states(
    classifier: Classifier, rows: list[list[int]], pad_id: int
) -> list[torch.Tensor]:
    """Return what the frozen part makes of each row of ids, in order: (T_i, D)."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    states: list = [None] * len(rows)
    for start in range(0, len(rows), 32):
        some = order[start : start + 32]
        ids, _ = pad_batch([rows[i] for i in some], pad_id)
        for i, x in zip(some, classifier.lower(ids), strict=True):
            states[i] = x[: len(rows[i])].clone()
    return states


def logits_of(classifier: Classifier, states: list[torch.Tensor]) -> torch.Tensor:
    """Return the logits (N, classes) for what frozen_states gave, padded to a batch."""
    lengths = torch.tensor([len(x) for x in states])
    return classifier.upper(
        nn.utils.rnn.pad_sequence(states, batch_first=True), lengths
    )


@torch.no_grad()
def measure(classifier, data: tuple, forward=logits_of) -> dict[str, float]:
    """Return cross-entropy and accuracy on (states, labels)."""
    states, labels = data
    logits = torch.cat(
        [forward(classifier, states[i : i + 64]) for i in range(0, len(states), 64)]
    )
    right = (logits.argmax(dim=-1) == labels).float().mean().item()
    return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": right}


def train_classifier(
    classifier: nn.Module,
    train: tuple,
    val: tuple,
    *,
    epochs: int = 6,
    learning_rate: float = 3e-4,
    batch_size: int = 16,
    seed: int = 123,
    forward=logits_of,
) -> list[dict[str, float]]:
    """Train on (states, labels); keep the epoch that is best on the validation pair.

    forward(classifier, states) returns logits (N, classes). Returns a record for each
    epoch: train_loss, val_loss, val_accuracy.
    """
    (states, labels), history, best = train, [], math.inf
    weights = kept = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, learning_rate, weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(seed)
    n_steps = epochs * math.ceil(len(states) / batch_size)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, n_steps)
    bar = tqdm(total=n_steps, file=sys.stdout)
    for _ in range(epochs):
        losses = []
        for some in torch.randperm(len(states), generator=generator).split(batch_size):
            loss = F.cross_entropy(
                forward(classifier, [states[i] for i in some]), labels[some]
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            falling.step()
            losses.append(loss.item())
            bar.update()
        on_val = measure(classifier, val, forward)
        if on_val["loss"] < best:
            best, kept = on_val["loss"], [p.detach().clone() for p in weights]
        history.append({"train_loss": sum(losses) / len(losses)})
        history[-1] |= {f"val_{key}": value for key, value in on_val.items()}
    bar.close()
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    return history


def compared(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Return the paired difference of accuracies (bool, (N,)) with a 95 % interval."""
    points = 100 * (ours.float() - theirs.float())  # -100, 0 or 100 for each message
    mean = points.mean().item()
    half = 1.96 * points.std().item() / math.sqrt(len(points))
    return f"{mean:+.1f} points, between {mean - half:+.1f} and {mean + half:+.1f}"


def classify(
    classifier: Classifier, tokenizer: Tokenizer, text: str
) -> tuple[str, float]:
    """Return the likeliest label for a text and the probability it is given."""
    context = classifier.model.config.context_length
    ids, lengths = pad_batch(
        encode_messages([text], tokenizer, context), tokenizer.eot_token
    )
    with torch.no_grad():
        probabilities = classifier(ids, lengths)[0].softmax(dim=-1)
    return classifier.labels[int(probabilities.argmax())], probabilities.max().item()


def save_trained(model: nn.Module, folder: str | Path, settings: dict) -> None:
    """Write the trained weights of a model as safetensors, and settings as JSON."""
    trained = {
        n: p.detach().contiguous()
        for n, p in model.named_parameters()
        if p.requires_grad
    }

    def write(new: Path) -> None:
        save_file(trained, new / "trained.safetensors")
        (new / "settings.json").write_text(json.dumps(settings), encoding="utf-8")

    write_folder(folder, write)


def read_trained(folder: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the weights and settings that save_trained has written.

    Raises ValueError if it has not.
    """
    if not (path := Path(folder) / "settings.json").exists():
        raise ValueError(
            f"nothing is saved in {folder}: run the notebook that trains it"
        )
    settings = json.loads(path.read_text(encoding="utf-8"))
    return load_file(Path(folder) / "trained.safetensors"), settings


def save_classifier(classifier: Classifier, name: str, folder: str | Path) -> None:
    """Write what was trained, and the name of the model that the rest is."""
    n_trained = len(classifier.model.blocks) - classifier.n_frozen
    settings = {"name": name, "labels": classifier.labels, "n_trained": n_trained}
    save_trained(classifier, folder, settings)


def load_classifier(folder: str | Path) -> Classifier:
    """Return what save_classifier wrote, around the model that it names."""
    weights, settings = read_trained(folder)
    classifier = Classifier(load_pretrained(settings.pop("name")), **settings)
    classifier.load_state_dict(weights, strict=False)
    return classifier.eval()
