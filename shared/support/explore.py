"""Things to touch in a notebook: tokens, merges, attention, a model block by block.

Each is a plain HTML table that says it all where no script runs (in JupyterLab before a
notebook is trusted, or on a web page of code); explore.js beside this file adds motion.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

SIGNS = str.maketrans(" \n\t", "·⏎⇥")
SMALL = str.maketrans("0123456789/", "₀₁₂₃₄₅₆₇₈₉⁄")
BLUE, ORANGE = "0,114,178", "230,159,0"  # Okabe-Ito
HUES = [BLUE, ORANGE, "0,158,115", "204,121,167"]


class Explorer:
    """A table that displays itself in a notebook, and moves where scripts run.

    `rows` are pairs of a name and of cells. With a `head` these are columns, without
    they follow each other as in a line. The script is told what is `known`.
    """

    def __init__(self, kind: str, caption: str, rows, head=(), **known: Any):
        self.caption = f"explore_{kind}: {caption}"
        start = "" if head else '<td style="text-align:left">'
        lines = ["<td>" + "".join(f"<th>{escape(name)}" for name in head)] * bool(head)
        for name, cells in rows:
            lines.append(f'<th style="text-align:left">{escape(name)}')
            lines[-1] += start + (" " if kind == "merges" else "").join(cells)
        files = (Path(__file__).with_suffix(end) for end in (".css", ".js"))
        style, script = (file.read_text(encoding="utf-8") for file in files)
        data = escape(json.dumps(known, separators=(",", ":")))
        self.html = (
            f'<div class="llmx" data-kind="{kind}" data-known="{data}"><style>{style}'
            f"</style><table><caption>{escape(caption)}</caption><tr>"
            f"{'<tr>'.join(lines)}</table><script>{script}</script></div>"
        )

    def __repr__(self) -> str:
        return self.caption

    def _repr_html_(self) -> str:
        return self.html


def cell(tag: str, text: str, told="", alpha: float = 0, hue: str = ORANGE) -> str:
    """Return a cell as HTML: what is read, what is told about it, and its shade."""
    title = f' title="{escape(told)}"' if told else ""
    style = f' style="background-color:rgba({hue},{alpha:.2f})"' if alpha else ""
    return f'<{tag} class="c"{title}{style}>{escape(text)}</{tag}>'


def visible(text: str) -> str:
    """Return a token with signs for spaces and for what cannot be printed.

    >>> visible(" the"), visible("end\\n")
    ('·the', 'end⏎')
    """
    signs = text.translate(SIGNS)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in signs)


def hundredths(shares: torch.Tensor) -> list:
    """Return shares times 100, rounded; a tie such as 1/8 is the same on every CPU."""
    return (100 * shares.double() + 0.501).long().tolist()


def pieces(ids: list[int], decode: Callable) -> list[tuple[str, int, int]]:
    """Return for each id its text, and from where to where in all of the text.

    Ids that hold parts of one character share it: "é₁⁄₂" and "é₂⁄₂".
    """
    whole, found, begin, start = decode(ids), [], 0, 0
    for end in range(1, len(ids) + 1):
        if decode(ids[:end]) + decode(ids[end:]) == whole:
            text, many = decode(ids[begin:end]), end - begin
            parts = [f"{n}/{many}".translate(SMALL) for n in range(1, many + 1)]
            parts = parts if many > 1 else [""]
            found += [(visible(text) + p, start, start + len(text)) for p in parts]
            begin, start = end, start + len(text)
    return found


def explore_tokens(text: str, tokenizers: Mapping[str, Any]) -> Explorer:
    """Show how tokenizers, by name, cut a text, with the ids.

    Raises ValueError without a text or a tokenizer.
    """
    if not text or not tokenizers:
        found = f"{len(text)} characters, {len(tokenizers)} tokenizers"
        raise ValueError(f"a text and at least one tokenizer are needed, got {found}")
    rows, spans = [], []
    for name, tokenizer in tokenizers.items():
        ids = list(getattr(tokenizer, "encode_ordinary", tokenizer.encode)(text))
        cells = []
        found = pieces(ids, tokenizer.decode)
        for n, (label, *_) in enumerate(found):
            told = f"token {n + 1} of {len(ids)}, id {ids[n]}: {label}"
            cells.append(cell("span", label, told, 0.35, HUES[n % 4]))
        rows.append((f"{name}: {len(ids)} tokens", cells))
        spans.append([span for _, *span in found])
    caption = f"{len(text)} characters; " + "; ".join(name for name, _ in rows)
    return Explorer("tokens", caption, rows, spans=spans)


def explore_merges(word: str, merges: Sequence[tuple[bytes, bytes]]) -> Explorer:
    """Step through the byte-pair encoding of one word; `merges` in their order.

    Raises ValueError for an empty word.
    """
    if not word:
        raise ValueError("a word of at least one character is needed, got ''")
    ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
    parts, rows, name, made = [bytes([b]) for b in word.encode()], [], "bytes", None
    while name:
        known = [pair for pair in pairwise(parts) if pair in ranks]
        pair = min(known, key=ranks.__getitem__, default=())
        names = " + ".join(visible(p.decode(errors="backslashreplace")) for p in pair)
        following = f"{names}, rank {ranks[pair]}" if pair else ""
        told = f"{len(parts)} pieces; next: {following or 'no pair is in the list'}"
        cells, after = [], []
        while parts:
            group = parts[: 2 if tuple(parts[:2]) == pair else 1]
            look = (0.5, ORANGE) if len(group) == 2 else (0.2, BLUE)
            look = (0.6, BLUE) if group == [made] else look
            shown = (visible(p.decode(errors="backslashreplace")) for p in group)
            cells += [cell("span", text, told, *look) for text in shown]
            after.append(b"".join(group))
            parts = parts[len(group) :]
        rows.append((name, cells))
        parts, name, made = after, following, b"".join(pair)
    caption = f"{visible(word)}: {len(rows) - 1} merges, {len(parts)} pieces at the end"
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
    names, rows = [visible(token) for token in tokens], []
    for name, row in zip(names, layers[0][0], strict=True):
        cells = [cell("td", f"{n / 100:.2f}" * bool(n), "", n / 170) for n in row]
        rows.append((name, cells))
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
    seen: list[torch.Tensor] = []
    keep = lambda _, args, out: seen.extend([out] if seen else [args[0], out])  # noqa: E731
    hooks = [block.register_forward_hook(keep) for block in model.blocks]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(ids.view(1, -1))
            stream = torch.cat(seen)
            return stream, model.out_head(model.final_norm(stream))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()


def explore_model(model: Any, token_ids: Any, tokenizer: Any) -> Explorer:
    """Show what a model would say after each block, at every position (logit lens).

    Raises ValueError for other than one row of ids.
    """
    stream, logits = logit_lens(model, token_ids)
    found = pieces(torch.as_tensor(token_ids).flatten().tolist(), tokenizer.decode)
    names, rows = [label for label, *_ in found], []
    shares, best = logits.softmax(-1).topk(min(5, logits.shape[-1]))
    for s, percents in enumerate(hundredths(shares)):
        stage, cells = f"after block {s}" if s else "embedding", []
        for t, percent in enumerate(percents):
            says = [visible(tokenizer.decode([i])) for i in best[s, t].tolist()]
            told = (
                f"{stage}, {names[t]}: length of the stream {stream[s, t].norm():.3g}"
            )
            told += "".join(f"\n{n} % {w}" for n, w in zip(percent, says, strict=True))
            cells.append(cell("td", says[0], told, percent[0] / 170, BLUE))
        rows.append((stage, cells))
    return Explorer(
        "model", f"{len(names)} tokens, {len(rows) - 1} blocks", rows, names
    )
