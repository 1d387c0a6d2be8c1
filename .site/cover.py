"""Draw the picture at the top of the README: python .site/cover.py

It shows the road, and what three of the models say, as the notebooks store it.
"""

import html
import re
import textwrap

from pages import HERE, notebooks, printed

BLUE, GREEN, ORANGE, RED = "#0072B2", "#009E73", "#E69F00", "#D55E00"
STATIONS = [
    (BLUE, "count letters", "a bigram table"),
    (BLUE, "cut text", "a BPE tokenizer"),
    (ORANGE, "look back", "attention"),
    (GREEN, "put it together", "a GPT, a Llama"),
    (RED, "learn to write", "a story-teller"),
    (RED, "learn to sort", "a spam filter"),
    (RED, "learn to answer", "a chat model"),
]


def found(pattern: str, text: str) -> str:
    """Return what the pattern's group matches, on one line."""
    match = re.search(pattern, text, re.DOTALL)
    assert match, f"the notebooks no longer print {pattern!r}"
    return " ".join(match[1].split())


def answers() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return, for each of three models, what is asked and what it answers."""
    paths = notebooks()
    tales = printed(paths, "ch07-127")
    asked = found(r"(Tell me a story about \w+ and an? \w+ \w+\.)\n", tales)
    tale = found(r"after: (.*?[.!?]\"?) *(?:\n\n|$)", tales)
    spam = printed(paths, "ch06-125")
    rows = re.findall(r"^(\w+) +([\d.]+%)  (.*)$", spam, re.MULTILINE)
    chat = printed(paths, "ch07-064")
    turns = re.findall(r"^(?:you|model): +(.*)$", chat, re.MULTILINE)
    return [
        ("your own GPT, chapter 7", [(asked, tale)]),
        (
            "your spam filter, chapter 6",
            [(message, f"{kind}, {share}") for kind, share, message in rows[1:]],
        ),
        (
            "SmolLM2 in your classes, chapter 7",
            list(zip(turns[::2], turns[1::2], strict=True)),
        ),
    ]


def text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" {more}>{html.escape(words, quote=False)}</text>'


def lines(words: str, width: int, most: int) -> list[str]:
    """Break a text into at most so many lines; dots say that it goes on."""
    wrapped = textwrap.wrap(words, width)
    if len(wrapped) > most:
        wrapped = [*wrapped[: most - 1], wrapped[most - 1].rstrip(" .,") + " …"]
    return wrapped


def draw() -> str:
    """Return the picture as SVG."""
    said, bold = answers(), 'font-weight="bold"'
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 380" width="760" '
        'role="img" aria-labelledby="t d" font-family="Helvetica, Arial, sans-serif">',
        '<title id="t">From counting letters to a chat model</title>',
        f'<desc id="d">Seven chapters: {"; ".join(a[1] for a in STATIONS)}. ',
        " ".join(html.escape(f"{q} {a}") for _, pairs in said for q, a in pairs),
        "</desc>",
        '<rect x=".5" y=".5" width="759" height="379" rx="12" fill="#fff" '
        'stroke="#d0d0d0"/>',
        '<path d="M 64 50 H 696" stroke="#d0d0d0" stroke-width="6"/>',
    ]
    for n, (colour, verb, thing) in enumerate(STATIONS):
        x = 64 + n * 105.33
        parts.append(
            f'<circle cx="{x:.0f}" cy="50" r="19" fill="#fff" stroke="{colour}" '
            'stroke-width="4"/>'
        )
        for y, words, look in (
            (56, str(n + 1), f'font-size="17" {bold} fill="#222"'),
            (92, verb, f'font-size="13" {bold} fill="#222"'),
            (110, thing, 'font-size="12.5" fill="#444"'),
        ):
            parts.append(text(round(x), y, words, f'text-anchor="middle" {look}'))
    for n, (where, pairs) in enumerate(said):
        x, y = 20 + n * 243, 158
        parts.append(
            f'<rect x="{x}" y="134" width="234" height="226" rx="10" fill="#f6f8fa" '
            'stroke="#d0d0d0"/>'
        )
        parts.append(text(x + 14, y, where, f'font-size="12" {bold} fill="#a34700"'))
        y += 24
        for question, answer in pairs:
            for line in lines(question, 34, 3):
                parts.append(text(x + 14, y, line, 'font-size="13" fill="#555"'))
                y += 16
            y += 4
            for line in lines(answer, 33, max(1, (346 - y) // 17 + 1)):
                parts.append(text(x + 14, y, line, 'font-size="13" fill="#111"'))
                y += 16
            y += 12
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    (HERE / "cover.svg").write_text(draw(), "utf-8")
