"""Chapter 2: our tokenizer against tiktoken, our windows against plain slicing."""

import errno
import os
import tracemalloc
import unicodedata
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.text_data import (
    END_OF_TEXT,
    PRE_TOKENS,
    BPETokenizer,
    GPTDataset,
    count_pre_tokens,
    create_dataloader,
    load_gpt2_encoding,
    load_text,
    split_safely,
    train_bpe,
)

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
    with pytest.raises(ValueError, match="beginning"):
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
    "tokenizer", [OURS, GPT2, TRAINED, TRAINED_TIKTOKEN], ids=lambda t: type(t).__name__
)
def test_every_tokenizer_has_the_same_interface(tokenizer):
    text = "Tell them the time."
    ids = tokenizer.encode(text, allowed_special=frozenset(), disallowed_special="all")
    assert ids == tokenizer.encode_ordinary(text) and tokenizer.decode(ids) == text
    assert all(isinstance(i, int) and 0 <= i < tokenizer.n_vocab for i in ids)
    assert tokenizer.encode(END_OF_TEXT, allowed_special="all") == [tokenizer.eot_token]
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


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
    traced_peak(OURS, short)  # fills the cache of words
    assert traced_peak(OURS, long) < 1.2 * traced_peak(OURS, short) + 50_000


def test_the_cache_is_bounded():
    tokenizer = BPETokenizer.train("abc", 256)
    tokenizer.encode(" ".join(map(str, range(10_000))) + " " + "x" * 5_000)
    assert len(tokenizer._cache) > 9_000 and max(map(len, tokenizer._cache)) < 64
    ids = tokenizer.encode(" ".join(map(str, range(40_000))))
    assert len(tokenizer._cache) <= 2**15
    assert tokenizer.decode(ids).endswith("39998 39999")


# --- files ----------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    path = tmp_path / "tokenizer.json"
    for tokenizer in TRAINED, OURS:
        tokenizer.save(path)
        loaded = BPETokenizer.load(path)
        assert loaded.vocab == tokenizer.vocab and loaded.merges == tokenizer.merges
        assert loaded.special_tokens == tokenizer.special_tokens
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
        good.replace(f'"{END_OF_TEXT}": 699', f'"{END_OF_TEXT}": 5'),
        good.replace('"merges": [', '"merges": [["Q", "Q"],', 1),
        good.replace('"65": "A",', "", 1),
        good.replace("byte-level BPE 1", "something else 9"),
        good.replace(f'"{END_OF_TEXT}": 699', f'"{END_OF_TEXT}": Infinity'),
    ):
        assert bad != good
        path.write_text(bad, encoding="utf-8")
        with pytest.raises(ValueError):
            BPETokenizer.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="tokenizer.json"):
        BPETokenizer.load(path)


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


def test_a_changed_gpt2_file_is_refused(tmp_path):
    from shared.fetch import fetch_gpt2_vocab

    vocab_bpe, encoder_json = fetch_gpt2_vocab()
    changed = tmp_path / "vocab.bpe"
    changed.write_bytes(vocab_bpe.read_bytes().replace(b"t h", b"h t", 1))
    with pytest.raises(ValueError, match="vocab.bpe.*SHA-256"):
        BPETokenizer.from_gpt2_files(changed, encoder_json)
    changed = tmp_path / "encoder.json"
    changed.write_bytes(
        encoder_json.read_bytes().replace(b'"the": 1169', b'"the": 1168', 1)
    )
    with pytest.raises(ValueError, match="encoder.json.*SHA-256"):
        BPETokenizer.from_gpt2_files(vocab_bpe, changed)
    with pytest.raises(TypeError):  # one file without the other
        BPETokenizer.from_gpt2_files(vocab_bpe)


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
            "id 700 is outside the vocabulary, 0 ... 699",
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
    with pytest.raises(ValueError, match="order of the merges"):
        tokenizer.to_tiktoken()


def test_to_tiktoken_refuses_a_token_that_the_merges_never_make():
    vocab = dict(enumerate([bytes([b]) for b in range(256)] + [b"bc", b"ab", b"abc"]))
    tokenizer = BPETokenizer(vocab, [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")])
    assert tokenizer.encode("abc") == [97, 256]  # tiktoken would give [258]
    with pytest.raises(ValueError, match="never make"):
        tokenizer.to_tiktoken()


# --- texts ----------------------------------------------------------------------------


def test_story_is_what_the_course_says_it_is():
    assert abs(len(STORY) - 20_000) < 500 and abs(len(GPT2.encode(STORY)) - 5_000) < 500
    assert STORY.isascii() and "  " not in STORY and STORY.endswith("\n")


def test_load_text_reads_a_file_and_names_a_bad_byte(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("grün\r\n".encode())
    assert load_text(path) == load_text(str(path)) == "grün\n"
    path.write_bytes(b"\xef\xbb\xbfone\rtwo\r\n")
    assert load_text(path) == "one\ntwo\n"
    path.write_bytes(b"gr\xfcn")
    with pytest.raises(
        ValueError, match="mine.txt is not UTF-8 text: bad byte at offset 2"
    ):
        load_text(path)
    for missing in tmp_path / "missing.txt", "the_verdict", "":
        with pytest.raises(FileNotFoundError, match="neither a file nor the name"):
            load_text(missing)


# --- windows --------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(2, 60), st.integers(1, 12), st.integers(1, 14))
def test_windows_equal_slicing(n_tokens, context_length, stride):
    ids = torch.randint(
        1_000, (n_tokens,), generator=torch.Generator().manual_seed(n_tokens)
    )
    starts = range(0, n_tokens - context_length, stride)
    if not len(starts):
        with pytest.raises(
            ValueError, match=f"{n_tokens} tokens.*= {context_length + 1}"
        ):
            GPTDataset(ids, context_length, stride)
        return
    dataset = GPTDataset(ids, context_length, stride)
    assert len(dataset) == len(starts)
    for i, start in enumerate(starts):
        x, y = dataset[i]
        assert x.tolist() == ids[start : start + context_length].tolist()
        assert y.tolist() == ids[start + 1 : start + 1 + context_length].tolist()
    for outside in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset[outside]


def test_windows_are_views_and_cost_no_memory():
    ids = torch.arange(10_000_000)
    tracemalloc.start()
    dataset = GPTDataset(ids, context_length=256, stride=1)
    x, y = dataset[1_234_567]
    # Python's objects; tensors are checked below
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset) == 10_000_000 - 256 and peak < 2**20
    storages = {t.untyped_storage().data_ptr() for t in (dataset.token_ids, ids, x, y)}
    assert len(storages) == 1


def test_a_memory_mapped_file_is_not_read_into_memory(tmp_path):
    path = tmp_path / "ids.bin"
    np.arange(5_000, dtype=np.uint16).tofile(path)
    mapped = np.memmap(path, dtype=np.uint16, mode="r+")
    dataset = GPTDataset(mapped, context_length=4)
    x, y = dataset[100]
    assert x.tolist() == [400, 401, 402, 403] and y.dtype == torch.int64
    mapped[400] = 7  # seen through the dataset: it shares the file's memory
    assert dataset[100][0].tolist() == [7, 401, 402, 403]
    # Warns of nothing
    GPTDataset(np.memmap(path, dtype=np.uint16, mode="c"), context_length=4)


def test_loader_covers_every_window_once_and_repeats_with_its_seed():
    ids = torch.arange(101)
    loader = create_dataloader(ids, batch_size=4, context_length=5, seed=7)
    batches = [x[:, 0].tolist() for x, _ in loader]
    assert (
        sorted(sum(batches, [])) == list(range(0, 100, 5))
        and len(batches) == len(loader) == 5
    )
    again = create_dataloader(ids, batch_size=4, context_length=5, seed=7)
    other = create_dataloader(ids, batch_size=4, context_length=5, seed=8)
    assert batches == [x[:, 0].tolist() for x, _ in again]
    assert batches != [x[:, 0].tolist() for x, _ in other]


def test_loader_options():
    ids = torch.arange(101)
    keep = create_dataloader(ids, 8, 5, shuffle=False, drop_last=False)
    assert [len(x) for x, _ in keep] == [8, 8, 4]
    assert next(iter(keep))[0][1].tolist() == [5, 6, 7, 8, 9]
    assert len(create_dataloader(ids, 8, 5, stride=1)) == 12
    workers = create_dataloader(
        ids, 8, 5, shuffle=False, drop_last=False, num_workers=1
    )
    assert [x.tolist() for x, _ in workers] == [x.tolist() for x, _ in keep]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"context_length": 0}, "at least 1, got 0 and 0"),
        ({"stride": 0}, "at least 1, got 5 and 0"),
        ({"context_length": 101}, "101 tokens.*= 102"),
        ({"batch_size": 21}, "20 windows.*batch_size = 21"),
        ({"token_ids": torch.zeros(4, 4, dtype=torch.int64)}, r"shape \(4, 4\)"),
        ({"token_ids": torch.zeros(40)}, "float32"),
        ({"token_ids": torch.zeros(40, dtype=torch.bool)}, "bool"),
    ],
)
def test_bad_loader_input_is_named(arguments, message):
    good = {"token_ids": torch.arange(101), "batch_size": 4, "context_length": 5}
    with pytest.raises(ValueError, match=message):
        create_dataloader(**(good | arguments))
