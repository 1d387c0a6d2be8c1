"""Measure what rounding weights to few bits costs two models, into a CSV.

    python ch05_pretraining/quantization_sweep.py

The Tiny Tales GPT and SmolLM2 are rounded to 8 down to 2 bits, with one scale for a
tensor, for a row, or for 32 neighbours, and read text that they have not been trained
on. Then SmolLM2's matrices are rounded to 3 bits one kind, or one block, at a time.
quantization_sweep.csv has the loss of each, in nats per byte. Takes some ten minutes on
one CPU core. ch05_quantization.ipynb shows the file.
"""

import csv
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import torch

from shared.gpt_model import Decoder
from shared.pretrained_weights import load_pretrained
from shared.pretraining import next_token_loss, story_batch
from shared.quantization import dequantize, quantize_absmax
from shared.support import write_whole
from shared.support.tiny_tales import tales
from shared.text_data import Tokenizer, load_text

HERE = Path(__file__).resolve().parent
PATH = HERE / "quantization_sweep.csv"
COLUMNS = "model part bits scales nats_per_byte".split()
BITS = range(8, 1, -1)
GROUP, FEW = 32, 3
KINDS = {
    "tok_emb": "embedding and head",
    "W_query": "queries",
    "W_key": "keys",
    "W_value": "values",
    "out_proj": "attention, output",
    "gate": "MLP, gate projection",
    "up": "MLP, up projection",
    "project": "MLP, down projection",
}


def rounded(weight: torch.Tensor, bits: int, scales: str) -> torch.Tensor:
    """Return the weight rounded to `bits`, a scale for each tensor, row or group."""
    shapes = {"tensor": (-1,), "row": weight.shape, "group": (-1, GROUP)}
    view = weight.view(shapes[scales])
    return dequantize(*quantize_absmax(view, bits)).view_as(weight)


def tales_loss(model: Decoder, tokenizer: Tokenizer) -> float:
    """Return the nats per byte on 100 tales of another seed than those of training."""
    texts = [tale.text for tale in tales(seed=2_000_003, n=100)]
    batch = story_batch(texts, tokenizer, model.config.context_length)
    with torch.no_grad():
        return next_token_loss(model, *batch)[0].item() / len("".join(texts).encode())


def story_loss(model: Decoder, tokenizer: Tokenizer) -> float:
    """Return the nats per byte on the course's own story, read in windows of 256."""
    text = load_text()[:3000]
    ids = [tokenizer.eot_token, *tokenizer.encode_ordinary(text)]
    total = 0.0
    for start in range(0, len(ids) - 1, 256):
        window = torch.tensor([ids[start : start + 257]])  # (1, T + 1)
        with torch.no_grad():
            total += next_token_loss(model, window[:, :-1], window[:, 1:])[0].item()
    return total / len(text.encode())


def sweep(
    name: str, model: Decoder, loss: Callable[[], float], parts: dict[str, str]
) -> Iterator[tuple]:
    """Yield the rows of a model: unrounded, all bits and scales, part by part."""
    matrices = {n: p for n, p in model.named_parameters() if p.ndim == 2}
    kept = {n: p.detach().clone() for n, p in matrices.items()}
    yield name, "all", 32, "none", loss()
    runs = [("all", b, s) for s in ("tensor", "row", "group") for b in BITS]
    runs += [(part, FEW, "row") for part in parts]
    for part, bits, scales in runs:
        for n, p in matrices.items():
            chosen = part == "all" or f".{part}." in f".{n}."
            p.data = rounded(kept[n], bits, scales) if chosen else kept[n]
        yield name, parts.get(part, part), bits, scales, loss()


def main() -> None:
    rows = []
    folder = HERE / "tiny_tales_gpt"
    for name, where in (("Tiny Tales GPT", folder), ("SmolLM2", "smollm2-135m")):
        model, tokenizer = load_pretrained(where)
        measure = tales_loss if where == folder else story_loss
        parts = {}
        if where != folder:
            blocks = range(model.config.n_layers)
            parts = KINDS | {f"blocks.{i}": f"block {i}" for i in blocks}
        for row in sweep(name, model, lambda: measure(model, tokenizer), parts):  # noqa: B023
            rows.append([*row[:-1], f"{row[-1]:.5f}"])
            print(*rows[-1], flush=True)
    table = StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    write_whole(PATH, table.getvalue())


if __name__ == "__main__":
    main()
