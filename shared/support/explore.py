"""Things to touch in a notebook: tokens, merges, attention, models, sampled answers.

Each is a plain HTML table that says it all where no script runs (in JupyterLab before a
notebook is trusted, or on a web page of code); explore.js beside this file adds motion.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook

from shared.support.modules import evaluating

SIGNS = str.maketrans(" \n\t", "·⏎⇥")
SMALL = str.maketrans("0123456789/", "₀₁₂₃₄₅₆₇₈₉⁄")
BLUE, ORANGE = "0,114,178", "230,159,0"  # Okabe-Ito
HUES = [BLUE, ORANGE, "0,158,115", "204,121,167"]


class Explorer:
    """A table that displays itself in a notebook, and moves where scripts run.

    `rows` are pairs of a name and of cells: what is read, what is told about it, and
    its shade and hue. The cells stand in columns with `names`, or without as in a line.
    """

    def __init__(self, kind: str, caption: str, rows, names=(), **known: Any):
        tag, gap = "td" if names else "span", " " if kind == "merges" else ""
        table = "<tr><th>" * bool(names) + "".join(f"<th>{escape(n)}" for n in names)
        for row, cells in rows:
            table += f'<tr><th style="text-align:left">{escape(row)}</th>'
            table += "" if names else '<td style="text-align:left">'
            for text, told, shade, hue in cells:
                style = f"background-color:rgba({hue},{shade:.2f})" if shade else ""
                table += f'<{tag} class="c" title="{escape(told)}" style="{style}">'
                table += f"{escape(text)}</{tag}>{gap}"
        page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
        page = re.sub(r"\n +", "\n", page)  # smaller
        data = escape(json.dumps(known, separators=(",", ":")))
        html = f'<div class="explorer" data-kind="{kind}" data-known="{data}"><table>'
        html += f"<caption>{escape(caption)}</caption>{table}</table>{page}</div>"
        self.bundle = {"text/plain": f"explore_{kind}: {caption}", "text/html": html}

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.bundle


def visible(text: str | bytes) -> str:
    """Return a token with signs for spaces and for what cannot be printed.

    >>> visible(" the"), visible(b"\\xe2\\n")
    ('·the', '\\\\xe2⏎')
    """
    if isinstance(text, bytes):
        text = text.decode(errors="backslashreplace")
    signs = text.translate(SIGNS)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in signs)


def hundredths(shares: torch.Tensor) -> list:
    """Return shares times 100, rounded; a tie such as 1/8 is the same on every CPU."""
    return (100 * shares.double() + 0.501).long().tolist()


def pieces(ids: list[int], decode: Callable) -> list[str]:
    """Return the text of each id; parts of one character share it: "é₁⁄₂", "é₂⁄₂"."""
    whole = decode(ids)
    found: list[str] = []
    for end in range(1, len(ids) + 1):
        if decode(ids[:end]) + decode(ids[end:]) == whole:
            text, many = visible(decode(ids[len(found) : end])), end - len(found)
            parts = [f"{n + 1}/{many}".translate(SMALL) for n in range(many)]
            found += [text + part for part in parts] if many > 1 else [text]
    return found


def explore_tokens(text: str, tokenizers: Mapping[str, Any]) -> Explorer:
    """Show how tokenizers, by name, cut a text, with the ids."""
    rows = []
    for name, tokenizer in tokenizers.items():
        ids = list(getattr(tokenizer, "encode_ordinary", tokenizer.encode)(text))
        parts = pieces(ids, tokenizer.decode)
        cells = [(parts[n], f"id {i}", 0.35, HUES[n % 4]) for n, i in enumerate(ids)]
        rows.append((f"{name}: {len(ids)} tokens", cells))
    caption = "; ".join([f"{len(text)} characters", *(name for name, _ in rows)])
    return Explorer("tokens", caption, rows)


def explore_merges(word: str, merges: Sequence[tuple[bytes, bytes]]) -> Explorer:
    """Step through the byte-pair encoding of one word; `merges` in their order."""
    ranks: dict = {tuple(pair): rank for rank, pair in enumerate(merges)}
    parts, rows, name = [bytes([b]) for b in word.encode()], [], "bytes"
    while name:
        known = [pair for pair in pairwise(parts) if pair in ranks]
        pair = min(known, key=ranks.__getitem__, default=())
        names = " + ".join(map(visible, pair))
        following = f"{names}, rank {ranks[pair]}" if pair else ""
        told = f"{len(parts)} pieces; next: {following or 'no pair is in the list'}"
        cells, after = [], []
        while parts:
            group = parts[: 2 if tuple(parts[:2]) == pair else 1]
            hue = HUES[len(group) - 1]
            cells += [(visible(part), told, 0.4, hue) for part in group]
            after.append(b"".join(group))
            parts = parts[len(group) :]
        rows.append((name, cells))
        parts, name = after, following
    caption = f"{visible(word)}: {len(word.encode())} bytes, {len(rows) - 1} merges"
    return Explorer("merges", caption, rows)


def explore_attention(weights: Any, tokens: Sequence[str]) -> Explorer:
    """Show who looks at whom, for weights (T, T), (H, T, T) or (layers, H, T, T).

    Raises ValueError for other shapes, and for weights outside 0 to 1.
    """
    values = torch.as_tensor(weights).detach().cpu()
    shape, T = tuple(values.shape), len(tokens)
    if not 2 <= len(shape) <= 4 or shape[-2:] != (T, T) or not values.numel():
        rule = f"expected (T, T), (H, T, T) or (layers, H, T, T) with T = {T} tokens"
        raise ValueError(f"weights {shape}: {rule}")
    if not (values.min() >= 0 and values.max() <= 1.001):
        found = f"{values.min():.3g} to {values.max():.3g}"
        raise ValueError(f"weights lie between 0 and 1, got {found}")
    layers = hundredths(values.view(*[1] * (4 - len(shape)), *shape))
    names = [visible(token) for token in tokens]
    rows = [
        (name, [(f"{n / 100:.2f}" * (n > 0), "", n / 170, ORANGE) for n in row])
        for name, row in zip(names, layers[0][0], strict=True)
    ]
    caption = f"layer 1 of {len(layers)}, head 1 of {len(layers[0])}"
    return Explorer("attention", caption, rows, names, layers=layers)


def logit_lens(model: Any, token_ids: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stream (S, T, D) and its logits (S, T, V): embedded, after each block.

    The stream is put through the last norm and the output head each time, so the last
    logits are the model's. Raises ValueError for other than one row of ids.
    """
    ids = torch.as_tensor(token_ids).to(model.tok_emb.weight.device)
    if not 0 < ids.numel() == ids.shape[-1]:
        raise ValueError(f"one row of token ids is needed, got {tuple(ids.shape)}")
    stream: list[torch.Tensor] = []
    blocks = set(model.blocks)

    def keep(module, inputs, output):
        if module in blocks:
            stream.extend([output] if stream else [inputs[0], output])

    with torch.no_grad(), evaluating(model), register_module_forward_hook(keep):
        model(ids.view(1, -1))
        stages = torch.cat(stream)
        return stages, model.out_head(model.final_norm(stages))


def explore_model(model: Any, token_ids: Any, tokenizer: Any) -> Explorer:
    """Show what a model would say after each block, at every position (logit lens).

    Raises ValueError for other than one row of ids.
    """
    stream, logits = logit_lens(model, token_ids)
    names = pieces(torch.as_tensor(token_ids).flatten().tolist(), tokenizer.decode)
    shares, best = logits.softmax(-1).topk(min(5, logits.shape[-1]))
    rows = []
    for s, percents in enumerate(hundredths(shares)):
        stage, cells = f"after block {s}" if s else "embedding", []
        for t, percent in enumerate(percents):
            says = [visible(tokenizer.decode([i])) for i in best[s, t].tolist()]
            told = f"{stage}, {names[t]}: stream of length {stream[s, t].norm():.3g}"
            told += "".join(f"\n{n} % {w}" for n, w in zip(percent, says, strict=True))
            cells.append((says[0], told, percent[0] / 170, BLUE))
        rows.append((stage, cells))
    caption = f"{len(names)} tokens, {len(rows) - 1} blocks"
    return Explorer("model", caption, rows, names)


def explore_samples(questions: Any, texts: Sequence[str], rewards: Any) -> Explorer:
    """Show some answers to each question, neighbours in `texts`: the bluer, the better.

    `rewards` (G, S), from 0 to 1, has a row for each question.
    """
    rows, answers = [], map(visible, texts)
    for question, group in zip(questions, rewards, strict=True):
        told = [(next(answers), float(reward)) for reward in group]
        cells = [
            (t[:7] + "…" * (len(t) > 7), f"reward {r:.3g}: {t}", r / 2, BLUE)
            for t, r in told
        ]
        rows.append((visible(question), cells))
    names = [str(n + 1) for n in range(len(cells))]
    caption = f"{len(rows)} questions, {len(names)} answers to each"
    return Explorer("samples", caption, rows, names)
