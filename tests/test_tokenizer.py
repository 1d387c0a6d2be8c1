"""Chapter 2: our byte-pair encoder against tiktoken and against plain recounting."""

import errno
import os
import re
import tracemalloc
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from conftest import TOKENIZER
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.pretrained_weights import load_gguf
from shared.support import COURSE, read_json
from shared.support.fetch import fetch_smollm2
from shared.text_data import END_OF_TEXT, load_gpt2_encoding, load_text
from shared.tokenizer import (
    PRE_TOKENS,
    BPETokenizer,
    apply_merges,
    bytes_of,
    count_pre_tokens,
    gpt2_byte_of_character,
    split_safely,
    train_bpe,
)

FIXTURES = Path(__file__).resolve().parent / "fixtures"
FIGURES = COURSE / "ch02_text_data" / "figures"
STORY = load_text()
GPT2 = load_gpt2_encoding()
OURS = BPETokenizer.from_gpt2_files()
TRAINED = BPETokenizer.train(
    STORY + " naïve café 天气很好 שלום", 700, special_tokens=[END_OF_TEXT]
)
TRAINED_TIKTOKEN = TRAINED.to_tiktoken()

# Every assigned code point but the surrogates: on unassigned ones the engines of
# tiktoken and of `regex` follow different versions of Unicode, and so may class a
# character differently.
VERSION_SENSITIVE = {"Cn", "Cs"}
characters = st.characters(exclude_categories=sorted(VERSION_SENSITIVE))
snippets = st.sampled_from(
    ["'ll", "'s", "'S", "'LL", " the", "ing", "  ", "\n\n", "\t", "\r\n",
     "\u00a0", "\u2003", "\x00", "\x1c", "\x85", "\u200b", "\ufffd", "é", "e\u0301",
     "ſ", "½", "１２", "1234567", "👩\u200d👩\u200d👧", "🇫🇷", "مرحبا", "שלום", "天气",
     "aaaa", "!!!", "<|endoftext|>", "def f(x):\n    return x"]
)  # fmt: skip
texts = st.lists(st.one_of(snippets, st.text(characters, max_size=8)), max_size=12).map(
    "".join
)


def known_to_both_engines(text: str) -> bool:
    """Python's tables are a third version of Unicode; keep to what it has assigned."""
    return all(
        unicodedata.category(character) not in VERSION_SENSITIVE for character in text
    )


# --- the same ids as tiktoken ---------------------------------------------------------


def test_story_has_gpt2s_ids():
    assert OURS.encode(STORY) == GPT2.encode(STORY)
    assert OURS.n_vocab == GPT2.n_vocab == 50_257
    assert OURS.eot_token == GPT2.eot_token == 50_256
    assert all(
        OURS.vocab[i] == GPT2.decode_single_token_bytes(i) for i in range(50_257)
    )


@settings(max_examples=3_000, deadline=None, derandomize=True)
@given(texts)
@example(" \x1c'll  \u2028\u0085x")
def test_random_text_has_gpt2s_ids(text):
    assert known_to_both_engines(text)
    ids = OURS.encode_ordinary(text)
    assert ids == GPT2.encode_ordinary(text)
    assert OURS.decode(ids) == text


@settings(max_examples=1_500, deadline=None, derandomize=True)
@given(texts)
def test_trained_tokenizer_agrees_with_its_tiktoken_and_loses_nothing(text):
    ids = TRAINED.encode(text, allowed_special="all")
    assert ids == TRAINED_TIKTOKEN.encode(text, allowed_special="all")
    assert TRAINED.decode(ids) == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.characters(categories=["Cs", "Lu", "Zs"]), max_size=12))
@example("\ud83d\ude00 \ud83d x \ude00")
def test_lone_surrogates_become_the_replacement_character(text):
    repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for ours, theirs in (OURS, GPT2), (TRAINED, TRAINED_TIKTOKEN):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == repaired


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 50_256), max_size=20))
def test_any_ids_decode_as_in_tiktoken(ids):
    assert OURS.decode(ids) == GPT2.decode(ids)


ALPHABET = st.text(st.sampled_from("aab c'"), max_size=60)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ALPHABET, ALPHABET)
def test_vocabulary_of_any_corpus_encodes_as_tiktoken_does(corpus, text):
    tokenizer = BPETokenizer.train(corpus + "aaaa", 300)
    ids = tokenizer.encode(text)
    assert ids == tokenizer.to_tiktoken().encode(text)
    assert tokenizer.decode(ids) == text


# --- training -------------------------------------------------------------------------


def train_by_recounting(
    word_counts: Counter, n_merges: int
) -> list[tuple[bytes, bytes]]:
    """An independent trainer: recount everything after every merge, on joined text."""
    words = {tuple(bytes([b]) for b in word): n for word, n in word_counts.items()}
    merges = []
    for _ in range(n_merges):
        pairs = Counter()
        for parts, n in words.items():
            for pair in pairwise(parts):
                pairs[pair] += n
        if not pairs:
            break
        most = max(pairs.values())
        best = sorted(pair for pair in pairs if pairs[pair] == most)[-1]
        merges.append(best)
        merged = Counter()
        for parts, n in words.items():
            out, rest = [], list(parts)
            while rest:
                if tuple(rest[:2]) == best:
                    out.append(best[0] + best[1])
                    rest = rest[2:]
                else:
                    out.append(rest.pop(0))
            merged[tuple(out)] += n
        words = merged
    return merges


def test_merges_of_the_story_equal_recounting():
    word_counts = count_pre_tokens(STORY[:8_000])
    assert train_bpe(word_counts, 250) == train_by_recounting(word_counts, 250)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(texts)
def test_merges_of_random_text_equal_recounting(text):
    word_counts = count_pre_tokens(text)
    assert train_bpe(word_counts, 40) == train_by_recounting(word_counts, 40)


def test_the_figure_of_the_merges_has_the_ranks_that_the_story_gives():
    merges = train_bpe(count_pre_tokens(STORY), 300)
    figure = FIGURES / "merges.svg"
    written = re.findall(r">(rank \d+|new: [^<]*)<", figure.read_text(encoding="utf-8"))
    ranks = [int(text.removeprefix("rank ")) for text in written[::2]]
    glued = [text.removeprefix("new: ").replace("·", " ") for text in written[1::2]]
    assert [b"".join(merges[rank]).decode() for rank in ranks] == glued
    tokens = apply_merges(b" clocked", {pair: n for n, pair in enumerate(merges)})
    assert tokens == [b" clock", b"ed"] and sorted(ranks) == ranks


def test_a_worked_case():
    # "aab" three times, "ab" twice: a+b 5 times, a+a 3 times. Then (a, ab) 3 times.
    merges = train_bpe({b"aab": 3, b"ab": 2}, 10)
    assert merges == [(b"a", b"b"), (b"a", b"ab")]


def test_ties_go_to_the_lexicographically_greater_pair():
    assert train_bpe({b"ab": 1, b"ac": 1, b"Zz": 1}, 3) == [
        (b"a", b"c"),
        (b"a", b"b"),
        (b"Z", b"z"),
    ]
    # b"a" + b"b" against b"ab" + ...: a longer left side is greater when it starts
    # alike
    assert train_bpe({b"xyxz": 1, b"xy": 1}, 2)[0] == (b"x", b"y")
    assert train_bpe({b"xyxz": 1, b"xy": 1}, 2)[1] == (b"xy", b"x")


def test_special_tokens_are_boundaries_and_never_merged_or_split():
    text = "ab<|x|>ab<|x|><|x|>" * 5
    tokenizer = BPETokenizer.train(text, 400, special_tokens=["<|x|>"])
    assert tokenizer.merges == [(b"a", b"b")]
    assert tokenizer.n_vocab == 258 and tokenizer.special_tokens == {"<|x|>": 257}
    assert tokenizer.encode("ab<|x|>", allowed_special="all") == [256, 257]
    assert tokenizer.encode("ab<|x|>", disallowed_special=())[-1] != 257


def test_overlapping_special_tokens_match_the_longest():
    tokenizer = BPETokenizer.train("abc", 258, special_tokens=["<|a|>", "<|a|><|b|>"])
    ids = tokenizer.encode("<|a|><|b|><|a|>", allowed_special="all")
    assert [tokenizer.vocab[i] for i in ids] == [b"<|a|><|b|>", b"<|a|>"]
    assert tokenizer.decode(ids) == "<|a|><|b|><|a|>"
    with pytest.raises(ValueError, match=r"may cut '<\|a\|><\|b\|>' behind '<\|a\|>'"):
        tokenizer.to_tiktoken()


def test_special_tokens_follow_tiktokens_rules():
    text = f"one{END_OF_TEXT}two"
    for tokenizer in OURS, GPT2, TRAINED, TRAINED_TIKTOKEN:
        with pytest.raises(ValueError, match="endoftext"):
            tokenizer.encode(text)
        with pytest.raises(ValueError, match="two"):
            tokenizer.encode("one two", disallowed_special={"two"})
    for rules in (
        {"allowed_special": "all"},
        {"allowed_special": {END_OF_TEXT}},
        {"disallowed_special": ()},
    ):
        assert OURS.encode(text, **rules) == GPT2.encode(text, **rules)
        assert TRAINED.encode(text, **rules) == TRAINED_TIKTOKEN.encode(text, **rules)
    assert OURS.encode_ordinary(text) == GPT2.encode_ordinary(text)


@pytest.mark.parametrize(
    "tokenizer",
    [GPT2, OURS, TRAINED, TRAINED_TIKTOKEN, TOKENIZER],
    ids=["gpt2-tiktoken", "gpt2", "own", "tiktoken", "chat"],
)
def test_every_tokenizer_has_the_same_interface(tokenizer):
    text = "Tell them the time."
    ids = tokenizer.encode(text, allowed_special=frozenset(), disallowed_special="all")
    assert ids == tokenizer.encode_ordinary(text) and tokenizer.decode(ids) == text
    assert all(isinstance(i, int) and 0 <= i < tokenizer.n_vocab for i in ids)
    assert tokenizer.encode(END_OF_TEXT, allowed_special="all") == [tokenizer.eot_token]
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
    with pytest.raises(ValueError, match="endoftext"):
        tokenizer.encode(f"one{END_OF_TEXT}")


# --- text in chunks -------------------------------------------------------------------

OVERLAPPING = BPETokenizer.train(
    STORY[:3_000], 400, ["<|a|>", "<|a|><|b|>", "<|", END_OF_TEXT]
)
chunk_parts = st.sampled_from(
    ["<|a|>", "<|b|>", "<|", "<", "|>", "<|endof", "text|>", " ", "  ", "\n",
     "'", "l", "ll", "v", "e", "the", "12", "!", "é", "🕊"]
)  # fmt: skip
RULES = [
    {"allowed_special": "all"},
    {"disallowed_special": ()},
    {"allowed_special": {"<|a|><|b|>"}, "disallowed_special": ()},
    {"allowed_special": {"<|a|>", END_OF_TEXT}, "disallowed_special": ()},
    {"allowed_special": {"<|a|>", "<|"}},
    {"disallowed_special": {"the", "<|b|>"}},
]


def ids_or_error(call):
    try:
        return list(call())
    except ValueError:
        return "refused"


@settings(max_examples=2_000, deadline=None, derandomize=True)
@given(st.lists(chunk_parts, max_size=14), st.sampled_from(RULES))
@example(["\n\n", "the"], {"disallowed_special": ()})
@example(["the ", " ", "v"], {"disallowed_special": ()})
def test_chunks_give_the_ids_of_the_whole(chunks, rules):
    assert ids_or_error(
        lambda: OVERLAPPING.encode_iterable(chunks, **rules)
    ) == ids_or_error(lambda: OVERLAPPING.encode("".join(chunks), **rules))


def test_chunks_refuse_what_the_whole_refuses_when_special_tokens_overlap():
    tokenizer = BPETokenizer.train("xab", 258, ["xa", "ab"])
    rules = {"allowed_special": {"xa"}}
    for call in (
        lambda: tokenizer.encode("xab", **rules),
        lambda: list(tokenizer.encode_iterable(["xab"], **rules)),
        lambda: list(tokenizer.encode_iterable(["xa", "b"], **rules)),
    ):
        with pytest.raises(ValueError, match="'ab'"):
            call()


def test_no_chunk_cuts_a_special_token_that_overlaps_another():
    tokenizer = BPETokenizer.train("ab c", 258, ["b c", "cd"])
    ids = tokenizer.encode("ab c x", allowed_special="all")
    assert list(tokenizer.encode_iterable(["ab c", " x"], allowed_special="all")) == ids


def test_single_characters_of_the_story_give_its_ids():
    assert list(OURS.encode_iterable(STORY[:4_000])) == GPT2.encode(STORY[:4_000])


def test_chunks_refuse_a_special_token_across_a_boundary():
    with pytest.raises(ValueError, match="endoftext"):
        list(TRAINED.encode_iterable(["one <|endof", "text|> two"]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(texts, texts)
@example("\n\nthe", " clock")
@example("\n\n'll", "")
def test_split_safely_loses_nothing_and_later_text_changes_nothing(text, later):
    ready, kept = split_safely(text, ())
    assert ready + kept == text
    assert PRE_TOKENS.findall(ready) + PRE_TOKENS.findall(
        kept + later
    ) == PRE_TOKENS.findall(text + later)


def traced_peak(tokenizer: BPETokenizer, path) -> int:
    with path.open(encoding="utf-8") as lines:
        tracemalloc.start()
        n_ids = sum(1 for _ in tokenizer.encode_iterable(lines))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert n_ids > path.stat().st_size / 8
    return peak


def test_encode_iterable_needs_no_more_memory_for_a_longer_file(tmp_path):
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text(STORY * 5, encoding="utf-8")
    long.write_text(STORY * 40, encoding="utf-8")
    traced_peak(OURS, short)  # remembers the words
    # The ids of the longer file alone, in a list, would take eight times as much.
    assert traced_peak(OURS, long) < 4 * traced_peak(OURS, short)


def test_ever_new_words_do_not_fill_the_memory():
    tokenizer = BPETokenizer.train("abc", 256)
    in_use = []
    tracemalloc.start()
    for number in range(70_000):
        tokenizer.encode_ordinary(f"a{number}")
        if number in (34_999, 69_999):
            in_use.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert in_use[1] < 1.5 * in_use[0]  # all words remembered: twice as much


# --- files ----------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    path = tmp_path / "tokenizer.json"
    for tokenizer in TRAINED, OURS:
        tokenizer.save(path)
        loaded = BPETokenizer.load(path)
        assert loaded.vocab == tokenizer.vocab and loaded.merges == tokenizer.merges
        assert loaded.special_tokens == tokenizer.special_tokens
        assert loaded.pattern == tokenizer.pattern
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    TRAINED.save(path)
    good = path.read_text(encoding="utf-8")
    for bad in (
        "",
        good[: len(good) // 2],
        "[]",
        '"text"',
        good.replace('"merges"', '"merge"'),
        good.replace('"257": ', '"9999": '),
        good.replace('"65": "A"', '"65": "B"'),
        good.replace('"65": "A"', '"65": "\u4e00"'),
        good.replace('"65": "A"', '"65": 65'),
        good.replace(f'"{END_OF_TEXT}": 699', f'"{END_OF_TEXT}": 5'),
        good.replace(f'"{END_OF_TEXT}": 699', '"": 699'),
        good.replace('"merges": [', '"merges": [["Q", "Q"],', 1),
        good.replace('"65": "A",', "", 1),
        good.replace('"pattern": "', '"pattern": "(', 1),
        good.replace(f'"{END_OF_TEXT}": 699', f'"{END_OF_TEXT}": Infinity'),
    ):
        assert bad != good
        path.write_text(bad, encoding="utf-8")
        with pytest.raises(ValueError, match=f"^{regex.escape(str(path))} is "):
            BPETokenizer.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=f"^{regex.escape(str(path))} is "):
        BPETokenizer.load(path)
    with pytest.raises(FileNotFoundError, match="^.*none.json is missing"):
        BPETokenizer.load(tmp_path / "none.json")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    TRAINED.save(path)
    before = path.read_bytes()

    def no_space(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="No space"):
        OURS.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


# --- SmolLM2's pattern and missing bytes ----------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> BPETokenizer:
    return load_gguf(fetch_smollm2())[1]


def test_smollm2_has_the_ids_that_its_own_tokenizer_gives(smollm2, tmp_path):
    smollm2.save(tmp_path / "tokenizer.json")
    loaded = BPETokenizer.load(tmp_path / "tokenizer.json")
    stored = read_json(FIXTURES / "smollm2.json")["ids"]
    assert len(stored) > 10
    for text, ids in stored:
        assert smollm2.encode_ordinary(text) == loaded.encode_ordinary(text) == ids
        assert smollm2.encode(text, disallowed_special=()) == ids
    assert loaded.special_tokens == smollm2.special_tokens
    everything = range(smollm2.n_vocab)
    assert loaded.decode(everything) == smollm2.decode(everything)


def test_a_saved_smollm2_encodes_odd_strings_as_before(smollm2, tmp_path):
    smollm2.save(tmp_path / "tokenizer.json")
    loaded = BPETokenizer.load(tmp_path / "tokenizer.json")
    chat = st.sampled_from(
        ["<|im_start|>", "<|im_end|>", "x\x06y", "\U000d9000", "\x1d"]
    )

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.lists(st.one_of(texts, chat), max_size=6))
    @example(["x\x06y\x16!\x04!", "12", "3 45"])
    def same_ids(pieces):
        text = "".join(pieces)
        ids = smollm2.encode(text, allowed_special="all")
        assert loaded.encode(text, allowed_special="all") == ids
        assert list(smollm2.encode_iterable(pieces, allowed_special="all")) == ids
        kept = [c for c in text if not set(c.encode()) & MISSING]
        assert smollm2.decode(ids) == "".join(kept)

    # An independent look at which bytes are not there: no token is that byte alone.
    tokens = set(smollm2.vocab.values())
    MISSING = {byte for byte in range(256) if bytes([byte]) not in tokens}
    assert {0x04, 0x06, 0x16} <= MISSING
    same_ids()


def test_a_pattern_decides_what_is_never_glued():
    text = "12 12 12 ab ab ab"
    pairs = [(b"1", b"2"), (b" ", b"12"), (b"a", b"b")]
    vocab = [bytes([byte]) for byte in range(256)] + [b"12", b" 12", b"ab"]
    tables = dict(enumerate(vocab)), pairs, {}
    assert BPETokenizer(*tables).encode(text[:5]) == [256, 257]
    alone = BPETokenizer(*tables, r"\p{N}| ?\p{L}+|\s+")
    assert alone.encode(text[:5]) == list(b"12 12") and alone.encode("ab") == [258]
    assert alone.to_tiktoken().encode(text) == alone.encode(text)


def test_a_tokenizer_without_some_bytes_drops_them_and_cannot_go_to_tiktoken():
    vocab = {0: b"a", 1: b"b", 2: b"ab", 3: b"<|x|>"}
    tokenizer = BPETokenizer(vocab, [(b"a", b"b")], {"<|x|>": 3})
    assert tokenizer.encode("cabé b<|x|>", allowed_special="all") == [2, 1, 3]
    assert tokenizer.decode([2, 1, 3]) == "abb<|x|>"
    with pytest.raises(ValueError, match="256 bytes"):
        tokenizer.to_tiktoken()


def test_gpt2s_alphabet_has_a_character_for_each_byte():
    assert sorted(gpt2_byte_of_character().values()) == list(range(256))
    assert all(c.isprintable() for c in gpt2_byte_of_character())
    assert bytes_of("Ġclock") == b" clock" and bytes_of("Ċ") == b"\n"
    for i, token in {8801: "Ġclock", 198: "Ċ", 50: "S"}.items():
        assert GPT2.decode_single_token_bytes(i) == bytes_of(token)
    with pytest.raises(KeyError):
        bytes_of("two words")


# --- bad input to the tokenizer -------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BPETokenizer.train("abc", 255), "at least 256 .*got 255"),
        (
            lambda: BPETokenizer.train("abc", 257, ["<|a|>", "<|b|>"]),
            "at least 258 .*got 257",
        ),
        (lambda: BPETokenizer.train("", 300), "empty: no text in its 0 characters"),
        (lambda: BPETokenizer.train("<|a|>", 300, ["<|a|>"]), "empty"),
        (lambda: BPETokenizer.train("abc", 300, [""]), "special token ''"),
        (
            lambda: TRAINED.decode([0, 700]),
            "id 700 is outside 0 ... 699",
        ),
        (lambda: TRAINED.decode([-1]), "id -1 is outside"),
        (lambda: BPETokenizer.train("abc", 256).eot_token, "endoftext"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_to_tiktoken_refuses_ids_out_of_order():
    vocab = dict(enumerate([bytes([b]) for b in range(256)] + [b"abc", b"ab"]))
    tokenizer = BPETokenizer(vocab, [(b"a", b"b"), (b"ab", b"c")])
    assert tokenizer.encode("abc") == [256]
    with pytest.raises(ValueError, match="order of merges"):
        tokenizer.to_tiktoken()


def test_to_tiktoken_refuses_a_token_that_the_merges_never_make():
    vocab = dict(enumerate([bytes([b]) for b in range(256)] + [b"bc", b"ab", b"abc"]))
    tokenizer = BPETokenizer(vocab, [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")])
    assert tokenizer.encode("abc") == [97, 256]  # tiktoken would give [258]
    with pytest.raises(ValueError, match="never make"):
        tokenizer.to_tiktoken()


BYTES = [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(
    ("tokens", "merges", "special_tokens", "message"),
    [
        ([*BYTES, b"ab"], [], {}, "single bytes and what its 0 merges make"),
        (BYTES, [(b"a", b"b")], {}, "its 1 merges make"),
        ([*BYTES, b"ab", b"ab"], [(b"a", b"b")], {}, "its 1 merges"),
        ([*BYTES, b"ab", b"ab"], [(b"a", b"b")] * 2, {}, "its 2 merges"),
        ([*BYTES, b"a"], [], {}, "its 0 merges"),
        ([*BYTES, b"abc"], [(b"ab", b"c")], {}, "b'ab' is merged, but not in"),
        ([*BYTES, b"<|x|>"], [], {"<|x|>": 255}, "'<|x|>' is not in .* as 255"),
        ([*BYTES, b"<|x|>"], [], {"<|x|>": 257}, "'<|x|>' is not in .* as 257"),
        ([*BYTES, b""], [], {"": 256}, "special token ''"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tokens, merges, special_tokens, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        BPETokenizer(dict(enumerate(tokens)), merges, special_tokens)


def test_ids_must_be_a_row_of_numbers():
    vocab = dict(enumerate(BYTES)) | {257: b"<|x|>"}
    with pytest.raises(ValueError, match="not 0 ... 256"):
        BPETokenizer(vocab, [], {"<|x|>": 257})


# --- what is no collection, and no whole number ---------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda: BPETokenizer.train(STORY, 1000, END_OF_TEXT),
        lambda: BPETokenizer.train(STORY, 1000, ""),
        lambda: count_pre_tokens(STORY, END_OF_TEXT),
        lambda: TOKENIZER.encode("yes", allowed_special=END_OF_TEXT),
        lambda: TOKENIZER.encode("yes", disallowed_special=END_OF_TEXT),
        lambda: TOKENIZER.encode("yes", allowed_special="ALL"),
        lambda: list(TOKENIZER.encode_iterable(["yes"], allowed_special="none")),
        lambda: BPETokenizer(TOKENIZER.vocab, TOKENIZER.merges, END_OF_TEXT),
        lambda: BPETokenizer(TOKENIZER.vocab, "ab", {}),
        lambda: TOKENIZER.decode("12"),
        lambda: TOKENIZER.decode(b"12"),
    ],
)
def test_a_text_is_no_collection(use):
    with pytest.raises(TypeError, match="must be a collection, not the text"):
        use()


@pytest.mark.parametrize("number", [-1, -300, 2.5, 300.0, float("inf"), "300"])
def test_a_number_of_merges_or_ids_is_whole(number):
    with pytest.raises(ValueError, match="n_merges must be a whole number"):
        train_bpe({b"the": 3}, number)
    with pytest.raises(ValueError, match="vocab_size must be"):
        BPETokenizer.train("the cat", number)
