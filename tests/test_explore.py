"""The explorers: what they say, that they escape what is theirs not, that they move."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
from conftest import GPT, LLAMA, TOKENIZER, build, shaken
from IPython.core.formatters import DisplayFormatter

from shared.support import COURSE
from shared.support.explore import (
    explore_attention,
    explore_merges,
    explore_model,
    explore_tokens,
    logit_lens,
)
from shared.tokenizer import BPETokenizer

TAB, LEFT, RIGHT, DOWN = "\ue004", "\ue012", "\ue014", "\ue015"  # as WebDriver has them
NASTY = '<script>alert(1)</script> "it\'s" & naïve 😀\n\tend'
MERGES = [(b"c", b"k"), (b"o", b"ck"), (b"c", b"l"), (b"a", b"a")]
WORDS = ["Ivy", "<b>clock", "it", "it"]
WEIGHTS = torch.tensor(
    [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.125, 0.75, 0.125, 0], [0.25] * 4]
)
HEADS = torch.stack([WEIGHTS, torch.eye(4)]).expand(3, 2, 4, 4)


class Page(HTMLParser):
    """The still of an explorer: its tags, its text, and cells with what they tell."""

    def __init__(self, explorer):
        super().__init__()
        self.tags, self.rows, self.told, self.caption = [], [], [], ""
        self.html = explorer.bundle["text/html"]
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        known = dict(attributes)
        if tag == "tr":
            self.rows.append([])
        if known.get("class") == "c" or tag == "th":
            self.rows[-1].append("")
        if known.get("class") == "c":
            self.told.append(known.get("title"))
        if "data-known" in known:
            self.known = json.loads(known["data-known"])

    def handle_data(self, data):
        if "caption" in self.tags and "tr" not in self.tags:
            self.caption += data
        elif "tr" in self.tags and "style" not in self.tags and data.strip():
            self.rows[-1][-1] += data


def test_tokens_are_cut_and_counted_as_their_tokenizer_does():
    gpt2 = BPETokenizer.from_gpt2_files()
    explorer = explore_tokens(" the clock struck", {"GPT-2": gpt2, "ours": TOKENIZER})
    page = Page(explorer)
    ids = gpt2.encode(" the clock struck")
    assert page.rows[0] == [f"GPT-2: {len(ids)} tokens", "·the", "·clock", "·struck"]
    assert page.told[1] == f"id {ids[1]}"
    n = len(TOKENIZER.encode(" the clock struck"))
    assert page.rows[1][0] == f"ours: {n} tokens" and len(page.rows[1]) == n + 1
    assert explorer.bundle["text/plain"] == (
        f"explore_tokens: 17 characters; GPT-2: 3 tokens; ours: {n} tokens"
    )


def test_parts_of_a_character_share_it():
    page = Page(explore_tokens("a😀é", {"ours": TOKENIZER}))
    assert page.rows[0][1:] == ["a", *(f"😀{n}⁄₄" for n in "₁₂₃₄"), "é₁⁄₂", "é₂⁄₂"]
    replaced = Page(explore_tokens("\ufffd\ufffd!", {"ours": TOKENIZER}))
    assert replaced.rows[0][1:] == [f"\ufffd{n}⁄₃" for n in "₁₂₃"] * 2 + ["!"]


def test_what_comes_from_a_text_is_escaped():
    model = build()
    names = {"<i>'\"": TOKENIZER}
    explorers = [
        explore_tokens(NASTY, names),
        explore_merges(NASTY, [(b"<", b"s"), (b"\xc3", b"\xaf")]),
        explore_attention(WEIGHTS, ["<script>", "'\"", "\n", "😀"]),
        explore_model(model, [1, 2, 3], Numbers()),
    ]
    for explorer in explorers:
        tags = Page(explorer).tags
        assert tags.count("script") == 1 and not {"i", "b", "em"} & set(tags)
    assert "".join(Page(explorers[0]).rows[0][1:]).startswith(
        "<script>alert(1)</script>·"
    )
    assert Page(explorers[2]).rows[0] == ["", "<script>", "'\"", "⏎", "😀"]


class Numbers:
    """A tokenizer whose tokens are unfriendly."""

    def decode(self, ids):
        return "".join(f"<em title='{i}'>" for i in ids)


def test_merges_are_done_in_their_order_and_the_next_pair_is_told():
    page = Page(explore_merges("clock", MERGES))
    assert page.rows == [
        ["bytes", "c", "l", "o", "c", "k"],
        ["c + k, rank 0", "c", "l", "o", "ck"],
        ["o + ck, rank 1", "c", "l", "ock"],
        ["c + l, rank 2", "cl", "ock"],
    ]
    assert page.told[0] == "5 pieces; next: c + k, rank 0"
    assert page.told[-1] == "2 pieces; next: no pair is in the list"
    assert page.caption == "clock: 5 bytes, 3 merges"


def test_merges_take_every_place_from_left_to_right_and_bytes_are_shown():
    page = Page(explore_merges("aaaaé", MERGES))
    assert page.rows[-1][1:] == ["aa", "aa", "\\xc3", "\\xa9"]


def test_merges_end_as_the_tokenizer_does():
    ids = TOKENIZER.encode(" prize")
    merged = Page(explore_merges(" prize", TOKENIZER.merges)).rows[-1][1:]
    assert merged == [TOKENIZER.decode([i]).replace(" ", "·") for i in ids]


@pytest.mark.parametrize("weights", [WEIGHTS, HEADS[0], HEADS, WEIGHTS.tolist()])
def test_attention_shows_the_first_head_and_knows_all(weights):
    page = Page(explore_attention(weights, WORDS))
    assert page.rows[0] == ["", *WORDS]
    assert page.rows[3] == ["it", "0.13", "0.75", "0.13", ""]  # 1/8 goes up everywhere
    many = torch.as_tensor(weights).shape[:-2]
    layers, heads = [1] * (2 - len(many)) + list(many)
    assert page.caption == f"layer 1 of {layers}, head 1 of {heads}"
    assert torch.tensor(page.known["layers"]).shape == (layers, heads, 4, 4)


def test_the_stream_after_the_last_block_says_what_the_model_says():
    for config in GPT, LLAMA:
        model = shaken(build(config)).train()
        ids = torch.tensor([[3, 1, 4, 1, 5]])
        stream, logits = logit_lens(model, ids)
        assert model.training and not model.blocks[0]._forward_hooks
        with torch.no_grad():
            expected = model.eval()(ids)[0]
            embedded = model.embed(ids, torch.arange(5))[0]
        assert stream.shape == (3, 5, 24) and logits.shape == (3, 5, 50)
        torch.testing.assert_close(logits[-1], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(stream[0], embedded, rtol=0, atol=1e-5)


def test_the_model_shows_its_best_tokens_and_their_shares():
    model = shaken(build(LLAMA))
    page = Page(explore_model(model, [3, 1, 4], TOKENIZER))
    with torch.no_grad():
        share, best = model(torch.tensor([[3, 1, 4]]))[0, -1].softmax(-1).max(-1)
    assert [row[0] for row in page.rows[1:]] == [
        "embedding", "after block 1", "after block 2",
    ]  # fmt: skip
    assert len(page.rows[0]) == 4 and all(len(row) == 4 for row in page.rows[1:])
    percent, name = page.told[-1].split("\n")[1].split(" % ")
    assert abs(int(percent) - 100 * share.item()) < 0.6
    assert name == page.rows[-1][-1]
    assert page.told[-1].startswith("after block 2, ")


def test_what_does_not_fit_is_refused_with_the_rule_and_the_numbers():
    for call, rule in [
        (lambda: explore_attention(WEIGHTS, WORDS[:3]), r"\(4, 4\).*T = 3"),
        (lambda: explore_attention(WEIGHTS[0], WORDS), r"weights \(4,\)"),
        (lambda: explore_attention(WEIGHTS[:2], WORDS), r"\(2, 4\)"),
        (lambda: explore_attention(HEADS[None], WORDS), r"\(1, 3, 2, 4, 4\)"),
        (lambda: explore_attention(WEIGHTS * 2, WORDS), "got 0 to 2"),
        (lambda: explore_attention(WEIGHTS.log(), WORDS), "got -inf to 0"),
        (lambda: explore_attention(WEIGHTS * torch.nan, WORDS), "got nan"),
        (lambda: explore_model(build(), [], TOKENIZER), r"got \(0,\)"),
        (lambda: explore_model(build(), [[1], [2]], TOKENIZER), r"got \(2, 1\)"),
        (lambda: explore_model(build(), [1] * 17, TOKENIZER), "16 tokens"),
    ]:
        with pytest.raises(ValueError, match=rule):
            call()


def all_four():
    gpt2 = BPETokenizer.from_gpt2_files()
    return [
        explore_tokens(NASTY, {"GPT-2": gpt2, "ours": TOKENIZER}),
        explore_merges("clock", MERGES),
        explore_attention(HEADS, WORDS),
        explore_model(shaken(build()), [3, 1, 4], TOKENIZER),
    ]


def test_the_same_input_gives_the_same_small_page():
    first, again = ([e.bundle["text/html"] for e in all_four()] for _ in range(2))
    assert first == again
    assert all(len(page) < 20_000 for page in first)
    assert " id=" not in "".join(first)  # so that several fit on one page


def test_a_notebook_gets_html_and_a_line_that_names_no_place_in_memory():
    formats, _ = DisplayFormatter().format(explore_merges("clock", MERGES))
    assert set(formats) == {"text/html", "text/plain"}
    assert formats["text/plain"] == "explore_merges: clock: 5 bytes, 3 merges"


def test_the_page_asks_for_nothing_from_outside():
    page = (COURSE / "shared" / "support" / "explore.html").read_text("utf-8")
    assert not re.search(r"http|src=|url\(|@import|fetch|eval", page)


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    pages = "<hr>".join(explorer.bundle["text/html"] for explorer in all_four())
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(f"<!doctype html><meta charset=utf-8>{pages}", "utf-8")
    chromium.page = file.as_uri()
    return chromium


def boxes(browser, scripts=True):
    """Open the page with all four explorers; return them."""
    browser.execute_cdp_cmd(
        "Emulation.setScriptExecutionDisabled", {"value": not scripts}
    )
    browser.get(browser.page)
    return browser.find_elements("class name", "explorer")


def press(browser, key):
    """Press a key where the focus is."""
    browser.switch_to.active_element.send_keys(key)


PLACES = [".c:last-child", "button:last-of-type", "button:last-of-type", "td.c"]


@pytest.mark.slow
@pytest.mark.parametrize("n", range(4), ids=["tokens", "merges", "attention", "model"])
def test_the_picture_changes_after_a_key_and_after_a_click(browser, n):
    box = boxes(browser)[n]
    target = box.find_element("css selector", PLACES[n])
    pictures = [box.screenshot_as_png]
    target.click()
    pictures.append(box.screenshot_as_png)
    for key in LEFT, RIGHT:
        press(browser, key)
        pictures.append(box.screenshot_as_png)
    assert all(a != b for a, b in pairwise(pictures))


@pytest.mark.slow
def test_all_is_reached_and_told_without_a_mouse(browser):
    tokens, merges, attention, model = every = boxes(browser)
    panels = [box.find_element("class name", "told") for box in every]
    press(browser, TAB)
    press(browser, RIGHT)
    assert panels[0].text.startswith("GPT-2, token 2 of ")
    assert len(tokens.find_elements("class name", "also")) >= 2  # one in each row
    press(browser, DOWN)
    assert panels[0].text.startswith("ours, token 2 of ")
    press(browser, TAB)  # from the tokens to the button that goes back
    assert len(merges.text.splitlines()) == 4
    for told in "4 pieces; next: o + ck, rank 1", "3 pieces; next: c + l, rank 2":
        press(browser, RIGHT)
        assert panels[1].text == told
    assert merges.text.endswith("o + ck, rank 1 c l ock")
    press(browser, LEFT)
    assert panels[1].text == "4 pieces; next: o + ck, rank 1"
    words = attention.find_elements("css selector", ".words .c")
    assert [word.text for word in words] == [f"{w}\n0.25" for w in WORDS]
    attention.find_element("css selector", "[aria-label='head 2']").click()
    assert [word.text for word in words] == ["Ivy", "<b>clock", "it", "it\n1.00"]
    assert (
        attention.find_element("tag name", "caption").text
        == "layer 1 of 3, head 2 of 2"
    )
    assert panels[3].text.startswith("after block 2, ")
    assert len(panels[3].find_elements("tag name", "i")) == 5
    for box in every:
        assert (
            len(box.find_elements("css selector", ".c[tabindex='0'], tr[tabindex='0']"))
            == 1
        )
    assert not browser.get_log("browser")


@pytest.mark.slow
def test_without_scripts_the_still_says_it_all(browser):
    stills = [box.text for box in boxes(browser, scripts=False)]
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "<script>" in "".join(stills[0].split()).replace("·", "")
    for still, words in zip(stills, [
        ["GPT-2: ", "ours: "], ["c + k, rank 0", "cl ock"],
        ["0.75", "layer 1 of 3"], ["embedding", "after block 2"],
    ], strict=True):  # fmt: skip
        assert all(word in still for word in words)
