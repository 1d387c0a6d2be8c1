"""Chapter 2: the texts, GPT-2's tokens, our windows against plain slicing."""

import html
import re
import tracemalloc

import numpy as np
import pytest
import tiktoken.load
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.support import COURSE, read_json
from shared.support.fetch import fetch_gpt2_vocab
from shared.text_data import (
    END_OF_TEXT,
    GPTDataset,
    create_dataloader,
    load_gpt2_encoding,
    load_text,
)

STORY = load_text()
GPT2 = load_gpt2_encoding()

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
    with pytest.raises(ValueError, match="mine.txt is not UTF-8 text at byte 2"):
        load_text(path)
    for missing in tmp_path / "missing.txt", "the_verdict", "":
        with pytest.raises(FileNotFoundError, match="no file, and no name of a public"):
            load_text(missing)


# --- GPT-2's tokenizer ----------------------------------------------------------------


def test_gpt2_has_the_ids_of_its_own_files():
    ids = read_json(fetch_gpt2_vocab()[1])  # as OpenAI published them
    assert GPT2.n_vocab == len(ids) == 50_257
    assert GPT2.eot_token == ids[END_OF_TEXT] == 50_256
    assert GPT2.encode("Hello world") == [ids["Hello"], ids["\u0120world"]]
    words = GPT2.encode("The clock's 12 hands.")
    assert [GPT2.decode([i]) for i in words] == [
        "The",
        " clock",
        "'s",
        " 12",
        " hands",
        ".",
    ]
    ids = GPT2.encode(f"one{END_OF_TEXT}", allowed_special={END_OF_TEXT})
    assert ids[-1] == GPT2.eot_token


def test_gpt2_is_what_tiktoken_itself_builds(monkeypatch):
    from tiktoken_ext import openai_public

    def without_download(*_, **__) -> dict[bytes, int]:
        return tiktoken.load.data_gym_to_mergeable_bpe_ranks(
            *map(str, fetch_gpt2_vocab())
        )

    name = "data_gym_to_mergeable_bpe_ranks"
    monkeypatch.setattr(openai_public, name, without_download)
    theirs = tiktoken.Encoding(**openai_public.gpt2())
    snippets = ["'ll", "'S", " the", "x", "  ", "\n\n", "\t", "12", "é", "天", "!", "🕊"]

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.lists(st.sampled_from(snippets), max_size=10).map("".join))
    def same_ids(text):
        ids = theirs.encode(text + END_OF_TEXT, allowed_special="all")
        assert GPT2.encode(text + END_OF_TEXT, allowed_special="all") == ids

    same_ids()
    assert GPT2.encode(STORY) == theirs.encode(STORY)


# --- windows --------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "a text", STORY])
def test_a_text_must_be_encoded_first(text):
    with pytest.raises(TypeError, match="token_ids must be a collection, not the text"):
        GPTDataset(text, context_length=4)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"context_length": 101}, "101 tokens.*= 102"),
        ({"batch_size": 21}, "20 windows do not fill a batch of 21"),
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"stride": 0}, "stride .* least 1, got 0"),
        ({"stride": -3}, "stride .* least 1, got -3"),
        ({"stride": 2.5}, "stride .* whole .* got 2.5"),
        ({"context_length": 0}, "context_length .* got 0"),
        ({"context_length": -5}, "context_length .* got -5"),
        ({"context_length": 4.0}, "context_length .* got 4.0"),
        ({"token_ids": []}, "the text has 0 tokens"),
        ({"token_ids": torch.zeros(0, dtype=torch.int64)}, "the text has 0 tokens"),
        ({"token_ids": torch.arange(101.0)}, "whole numbers, got .*float32"),
        ({"token_ids": [0.5] * 9}, "whole numbers, got .*float32"),
        ({"token_ids": np.linspace(0, 1, 50)}, "whole numbers, got .*float64"),
        ({"token_ids": torch.arange(101).expand(9, -1)}, r"got \(9, 101\)"),
    ],
)
def test_bad_loader_input_is_named(arguments, message):
    arguments = {"drop_last": "batch_size" in arguments} | arguments
    good = {"token_ids": torch.arange(101), "batch_size": 4, "context_length": 5}
    with pytest.raises(ValueError, match=message):
        create_dataloader(**(good | arguments))


# --- the numbers in the chapter's figures ---------------------------------------------

FIGURES = COURSE / "ch02_text_data" / "figures"
SENTENCE = "Ivy wound the clock because it had stopped."


def texts_of(figure: str) -> list[str]:
    """Return what is written in a figure, from top to bottom as in its file."""
    svg = (FIGURES / f"{figure}.svg").read_text(encoding="utf-8")
    return [html.unescape(text) for text in re.findall(r"<text [^>]*>([^<]*)<", svg)]


def pieces(text: str) -> list[str]:
    return [GPT2.decode([i]).replace(" ", "·") for i in GPT2.encode(text)]


def test_the_sliding_windows_are_those_of_the_cell():
    written = texts_of("sliding_window")
    ids = GPT2.encode(SENTENCE)
    expected = [
        str(x) for pair in zip(pieces(SENTENCE), ids, strict=True) for x in pair
    ]
    assert written[1:21] == expected
    words = [text for text in written[23:] if text in pieces(SENTENCE)]
    for number, (x, y) in enumerate(GPTDataset(torch.tensor(ids), 4)):
        shown = [
            GPT2.decode([i]).replace(" ", "·") for i in torch.stack([x, y], 1).flatten()
        ]
        assert words[8 * number : 8 * number + 8] == shown


def test_the_road_from_text_to_tensor_has_the_numbers_of_the_cell():
    text = SENTENCE[:19] + "."
    ids = GPT2.encode(text)
    draw = torch.Generator().manual_seed(1)
    token_table = torch.randint(-9, 10, (GPT2.n_vocab, 4), generator=draw) / 10
    position_table = torch.randint(-9, 10, (6, 4), generator=draw) / 10
    vectors = token_table[torch.tensor(ids)]
    written = texts_of("pipeline")
    assert text in written and written[2:8] == pieces(text)
    assert [number for number in written if number.isdigit()] == [str(i) for i in ids]
    numbers = [float(number) for number in written if re.fullmatch(r"-?\d\.\d", number)]
    expected = torch.stack([vectors, position_table, vectors + position_table])
    torch.testing.assert_close(torch.tensor(numbers).view(3, 6, 4), expected)


def test_the_lookup_shows_the_row_that_the_product_gives():
    numbers = [float(n) for n in texts_of("lookup") if re.fullmatch(r"-?\d\.\d\d", n)]
    table, row = torch.tensor(numbers).split([24, 4])
    one_hot = [int(n) for n in texts_of("lookup") if n in {"0", "1"}]
    assert torch.equal(table.view(6, 4)[3], row) and one_hot.count(1) >= 1


def test_the_two_readings_of_a_special_token():
    ids = [int(number) for number in texts_of("special") if number.isdigit()]
    text = "Bye!<|endoftext|>"
    assert ids == GPT2.encode_ordinary(text) + GPT2.encode(text, allowed_special="all")
