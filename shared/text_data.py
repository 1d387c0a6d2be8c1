"""A byte-pair encoder that gives exactly GPT-2's token ids, and the data loader that
turns a text into batches of vectors for a transformer.

Generated from ch02_text_data/ch02_text_data.ipynb by `python -m shared.export`;
edit the notebook, not this file.
"""

import heapq
import json
import operator
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, permutations
from pathlib import Path
from typing import Literal, Protocol, Self

import regex
import tiktoken
import torch
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from torch.utils.data import DataLoader, Dataset

from shared.fetch import ARTIFACTS, fetch, fetch_gpt2_vocab, verify

__all__ = [
    "load_text", "load_gpt2_encoding", "END_OF_TEXT", "GPT2_PATTERN", "merge_pair",
    "PRE_TOKENS", "replace_lone_surrogates", "split_on_special", "count_pre_tokens",
    "FLIPPED", "descending", "PairIndex", "train_bpe", "apply_merges", "LAST_CUT",
    "split_safely", "Specials", "special_sets", "refuse_special", "Tables",
    "learn_tables", "FILE_FORMAT", "write_tables", "read_tables",
    "gpt2_byte_of_character", "read_gpt2_tables", "check_tables", "make_tiktoken",
    "Tokenizer", "BPETokenizer", "GPTDataset", "create_dataloader",
]  # fmt: skip


def load_text(source: str | Path | None = None) -> str:
    """Return the course's story, the public text of that name, or the file at a path.

    Names: "the-verdict" (Edith Wharton, 1908), downloaded once on request and
    hash-checked. Raises ValueError, with the byte offset, for a file that is not UTF-8.
    """
    if source is None:
        path = Path(__file__).resolve().parent.parent / "ch01_intro" / "story.txt"
    elif f"texts/{source}.txt" in ARTIFACTS:
        path = fetch(f"texts/{source}.txt", progress=True)
    elif not (path := Path(source)).is_file():
        raise FileNotFoundError(
            f"{path} is neither a file nor the name of a public text"
        )
    try:
        return path.read_text(encoding="utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: bad byte at offset {error.start}"
        ) from None


def load_gpt2_encoding() -> tiktoken.Encoding:
    """Return GPT-2's tokenizer (Radford et al., 2019); tiktoken builds it from 2 files.

    The same as `tiktoken.get_encoding("gpt2")`, but through the course's own cache.
    """
    ranks = data_gym_to_mergeable_bpe_ranks(*map(str, fetch_gpt2_vocab()))
    special_tokens = {END_OF_TEXT: len(ranks)}
    return tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens=special_tokens,
    )


END_OF_TEXT = "<|endoftext|>"
GPT2_PATTERN = (  # how GPT-2 cuts a text before any merge; section 2.3 takes it apart
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def merge_pair(parts: list, pair: tuple) -> list:
    """Return `parts` with every two neighbours `pair` glued together, left to right.

    >>> merge_pair(["l", "o", "l", "o", "l"], ("l", "o"))
    ['lo', 'lo', 'l']
    """
    left, right = pair
    merged = []
    for part in parts:
        if part == right and merged and merged[-1] == left:
            merged[-1] = left + right
        else:
            merged.append(part)
    return merged


PRE_TOKENS = regex.compile(GPT2_PATTERN)


def replace_lone_surrogates(text: str) -> str:
    """Return `text` with U+FFFD for lone surrogates, halves of a pair in UTF-16."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def split_on_special(text: str, special_tokens: Collection[str]) -> list[str]:
    """Cut `text` at the special tokens, longest first; they stand at the odd positions.

    >>> split_on_special("one<|endoftext|>two", {"<|endoftext|>"})
    ['one', '<|endoftext|>', 'two']
    """
    if not special_tokens:
        return [text]
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text)


def count_pre_tokens(text: str, special_tokens: Collection[str] = ()) -> Counter:
    """Count the pre-tokens of `text`, as UTF-8 bytes; special tokens are boundaries."""
    counts = Counter()
    for document in split_on_special(text, special_tokens)[::2]:
        counts.update(PRE_TOKENS.findall(replace_lone_surrogates(document)))
    return Counter({word.encode("utf-8"): n for word, n in counts.items()})


FLIPPED = bytes(range(255, -1, -1))


def descending(token: bytes) -> str:
    """Return a string that sorts before another token's if `token` sorts after it."""
    # Flip every byte; the mark at the end, above all of them, lets b"ab" come before
    # b"a".
    return token.translate(FLIPPED).decode("latin-1") + "\u0100"


class PairIndex:
    """The pairs of neighbours in some words: how often, in which words, the best."""

    def __init__(self, word_counts: Mapping[bytes, int]):
        self.words = [[bytes([byte]) for byte in word] for word in word_counts]
        self.frequency = list(word_counts.values())
        self.counts = Counter()
        self.where = {}  # pair -> numbers of the words where it stands, or once stood
        for number, parts in enumerate(self.words):
            for pair in pairwise(parts):
                self.counts[pair] += self.frequency[number]
                self.where.setdefault(pair, set()).add(number)
        self.heap = [self._entry(pair) for pair in self.counts]
        heapq.heapify(self.heap)

    def _entry(self, pair: tuple[bytes, bytes]) -> tuple:
        return -self.counts[pair], descending(pair[0]), descending(pair[1]), pair

    def pop_best(self) -> tuple[bytes, bytes] | None:
        """Return the most frequent pair, in a tie the greatest, or None."""
        while self.heap:
            count, _, _, pair = heapq.heappop(self.heap)
            if -count == self.counts[pair] > 0:
                return pair
            if self.counts[pair] > 0:  # a stale entry: put it back with its true count
                heapq.heappush(self.heap, self._entry(pair))
        return None

    def merge(self, pair: tuple[bytes, bytes]) -> int:
        """Glue `pair` in every word that has it; return how many were looked at."""
        glued = pair[0] + pair[1]
        created = set()
        numbers = self.where.pop(pair)
        for number in numbers:
            old, times = self.words[number], self.frequency[number]
            new = self.words[number] = merge_pair(old, pair)
            for neighbours in pairwise(old):
                self.counts[neighbours] -= times
            for neighbours in pairwise(new):
                self.counts[neighbours] += times
                if glued in neighbours:
                    self.where.setdefault(neighbours, set()).add(number)
                    created.add(neighbours)
        for neighbours in created:
            heapq.heappush(self.heap, self._entry(neighbours))
        return len(numbers)


def train_bpe(
    word_counts: Mapping[bytes, int], n_merges: int
) -> list[tuple[bytes, bytes]]:
    """Return at most `n_merges` merges of `word_counts` {pre-token: count}, best first.

    The most frequent pair of neighbours is merged; ties go to the lexicographically
    greater pair of byte strings. Fewer merges come back when every word has become a
    single token. Follows Sennrich, Haddow and Birch (2016), over bytes as in GPT-2.
    """
    index = PairIndex(word_counts)
    merges = []
    while len(merges) < n_merges and (pair := index.pop_best()) is not None:
        index.merge(pair)
        merges.append(pair)
    return merges


def apply_merges(word: bytes, ranks: Mapping[tuple[bytes, bytes], int]) -> list[bytes]:
    """Return the tokens of one pre-token: glue neighbours of lowest rank to the end.

    Fine for words; a single pre-token of many thousand different letters takes seconds.

    >>> apply_merges(b"then", {(b"h", b"e"): 0, (b"t", b"he"): 1})
    [b'the', b'n']
    """
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        parts = merge_pair(parts, best)
    return parts


# GPT2_PATTERN always cuts behind each of these; (?r) searches from the end of the text.
LAST_CUT = regex.compile(r"(?r)\p{L}(?=\P{L})|\p{N}(?=\P{N})|\S(?=\s)")


def split_safely(text: str, special_tokens: Collection[str]) -> tuple[str, str]:
    """Cut `text` in two so that later text cannot change how the first part is encoded.

    >>> split_safely("the clock str", ())
    ('the clock', ' str')
    """
    # All is clear but the longest end that may be the beginning of a (longer) special
    # token.
    beginnings = [token[:n] for token in special_tokens for n in range(1, len(token))]
    clear = len(text) - max(
        (len(part) for part in beginnings if text.endswith(part)), default=0
    )
    pieces = split_on_special(text, special_tokens)
    while (start := len("".join(pieces[:-1]))) > clear:
        # The last special token reaches into the unclear end
        pieces = pieces[:-2]
    found = LAST_CUT.search(pieces[-1][: clear - start])
    cut = start + (found.end() if found else 0)
    return text[:cut], text[cut:]


Specials = Literal["all"] | Collection[str]


def special_sets(
    known: Collection[str],
    allowed_special: Specials = (),
    disallowed_special: Specials = "all",
) -> tuple[set[str], set[str]]:
    """Return which special tokens become one id, and which are errors in a text."""
    allowed = (
        set(known) if allowed_special == "all" else set(known) & set(allowed_special)
    )
    refused = (
        set(known) - allowed if disallowed_special == "all" else set(disallowed_special)
    )
    return allowed, refused


def refuse_special(text: str, refused: Collection[str]) -> None:
    """Raise ValueError if `text` contains one of the special tokens `refused`."""
    if found := split_on_special(text, refused)[1:2]:
        raise ValueError(
            f"the text contains the special token {found[0]!r}: allow it with "
            "allowed_special, or read it as ordinary text with disallowed_special=()"
        )


Tables = tuple[dict[int, bytes], list[tuple[bytes, bytes]], dict[str, int]]


def learn_tables(text: str, vocab_size: int, special_tokens: Iterable[str]) -> Tables:
    """Learn vocabulary, merges and special tokens; see `BPETokenizer.train`."""
    special_tokens = list(dict.fromkeys(special_tokens))
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size must be at least {smallest} (bytes and special tokens), "
            f"got {vocab_size}"
        )
    word_counts = count_pre_tokens(text, special_tokens)
    if not word_counts:
        raise ValueError(f"the corpus is empty: no text in its {len(text)} characters")
    merges = train_bpe(word_counts, vocab_size - smallest)
    tokens = [bytes([byte]) for byte in range(256)] + [
        left + right for left, right in merges
    ]
    special_ids = {token: len(tokens) + n for n, token in enumerate(special_tokens)}
    tokens += [token.encode("utf-8") for token in special_tokens]
    return dict(enumerate(tokens)), merges, special_ids


FILE_FORMAT = "llm-course byte-level BPE 1"


def write_tables(path: Path, vocab, merges, special_tokens) -> None:
    """Write a tokenizer's three tables as JSON, all or nothing."""
    content = {
        "format": FILE_FORMAT,
        "vocab": {i: token.decode("latin-1") for i, token in vocab.items()},
        "merges": [
            [left.decode("latin-1"), right.decode("latin-1")] for left, right in merges
        ],
        "special_tokens": special_tokens,
    }
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(json.dumps(content, indent=0), encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_tables(path: Path) -> Tables:
    """Read what `write_tables` wrote; ValueError if it is damaged or something else."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FILE_FORMAT:
            raise ValueError(
                f"its format is {content['format']!r}, not {FILE_FORMAT!r}"
            )
        vocab = {
            int(i): token.encode("latin-1") for i, token in content["vocab"].items()
        }
        merges = [
            (a.encode("latin-1"), b.encode("latin-1")) for a, b in content["merges"]
        ]
        special_tokens = {
            str(token): int(i) for token, i in content["special_tokens"].items()
        }
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise ValueError(
            f"{path} is not a tokenizer file of this course: {error!r}"
        ) from None
    return vocab, merges, special_tokens


def gpt2_byte_of_character() -> dict[str, int]:
    """Return GPT-2's table from characters in its files to the bytes they mean."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(0xA1, 0xAD),
        *range(0xAE, 0x100),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


def read_gpt2_tables(vocab_bpe: Path, encoder_json: Path) -> Tables:
    """Read GPT-2's vocabulary files; ValueError if they are not the originals."""
    verify(vocab_bpe, ARTIFACTS["gpt2/vocab.bpe"].sha256)
    verify(encoder_json, ARTIFACTS["gpt2/encoder.json"].sha256)
    table = gpt2_byte_of_character()

    def as_bytes(token: str) -> bytes:
        return bytes(table[character] for character in token)

    ids = json.loads(encoder_json.read_text(encoding="utf-8"))
    end = ids.pop(END_OF_TEXT)
    vocab = {i: as_bytes(token) for token, i in ids.items()} | {
        end: END_OF_TEXT.encode()
    }
    # The first line names a version
    lines = vocab_bpe.read_text(encoding="utf-8").splitlines()[1:]
    merges = [
        (as_bytes(left), as_bytes(right)) for left, right in map(str.split, lines)
    ]
    return vocab, merges, {END_OF_TEXT: end}


def check_tables(
    vocab: Mapping[int, bytes],
    merges: list[tuple[bytes, bytes]],
    special_tokens: Mapping[str, int],
) -> None:
    """Raise ValueError if vocabulary, merges and special tokens do not fit together."""
    if sorted(vocab) != list(range(len(vocab))):
        raise ValueError(
            f"the {len(vocab)} ids of the vocabulary are not 0 ... {len(vocab) - 1}"
        )
    for text, i in special_tokens.items():
        if not text or vocab.get(i) != text.encode("utf-8"):
            raise ValueError(
                f"special token {text!r} is not in the vocabulary under its id {i}"
            )
    special_ids = set(special_tokens.values())
    ordinary = [token for i, token in vocab.items() if i not in special_ids]
    made = {bytes([byte]) for byte in range(256)} | {
        left + right for left, right in merges
    }
    if not len(ordinary) == len(made) == 256 + len(merges) or set(ordinary) != made:
        raise ValueError(
            f"the vocabulary is not 256 bytes and what its {len(merges)} merges make"
        )
    if unknown := {part for pair in merges for part in pair} - made:
        raise ValueError(
            f"the merges use tokens outside the vocabulary, such as {min(unknown)!r}"
        )


def make_tiktoken(ids, ranks, special_tokens) -> tiktoken.Encoding:
    """Return the same tokenizer as a tiktoken.Encoding; see `BPETokenizer.to_tiktoken`.

    `ids` maps ordinary tokens to their ids, `ranks` the merges to their order.
    """
    for short, long in permutations(special_tokens, 2):
        if long.startswith(short):
            raise ValueError(
                f"tiktoken may read {long!r} as its beginning {short!r}: rename one"
            )
    merged = [ids[left + right] for left, right in ranks]
    if merged != sorted(merged):
        raise ValueError(
            "tiktoken needs ids in the order of the merges, and these are not"
        )
    for left, right in ranks:
        if len(apply_merges(left + right, ranks)) > 1:
            raise ValueError(f"{left + right!r} is a token that the merges never make")
    return tiktoken.Encoding(
        "course-bpe",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=ids,
        special_tokens=special_tokens,
    )


class Tokenizer(Protocol):
    """What later chapters ask of a tokenizer; BPETokenizer and tiktoken.Encoding do it.

    `n_vocab` is the number of ids (the largest plus one), `eot_token` the id of
    <|endoftext|>.
    """

    @property
    def n_vocab(self) -> int: ...

    @property
    def eot_token(self) -> int: ...

    def encode(
        self,
        text: str,
        *,
        allowed_special: Specials = (),
        disallowed_special: Specials = "all",
    ) -> list[int]: ...

    def encode_ordinary(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int], /) -> str: ...


class BPETokenizer:
    """Byte-level byte-pair encoding as in GPT-2 (Radford et al., 2019); a `Tokenizer`.

    `vocab` maps ids to bytes, special tokens included; `merges` lists pairs of bytes in
    the order in which they were learned; `special_tokens` maps texts to ids.

    >>> tokenizer = BPETokenizer.train("the cat the mat", vocab_size=258)
    >>> tokenizer.decode(tokenizer.encode("the hat")), tokenizer.n_vocab
    ('the hat', 258)
    """

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Iterable[tuple[bytes, bytes]],
        special_tokens: Mapping[str, int] | None = None,
    ):
        self.vocab, self.merges = dict(vocab), list(merges)
        self.special_tokens = dict(special_tokens or {})
        check_tables(self.vocab, self.merges, self.special_tokens)
        special_ids = set(self.special_tokens.values())
        self._ids = {
            token: i for i, token in self.vocab.items() if i not in special_ids
        }
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._cache: dict[str, list[int]] = {}  # pre-token -> ids

    @classmethod
    def train(
        cls, text: str, vocab_size: int, special_tokens: Iterable[str] = ()
    ) -> Self:
        """Learn a vocabulary of `vocab_size` ids: 256 bytes, merges, special tokens.

        The vocabulary stays smaller when the text runs out of pairs to merge. Raises
        ValueError for a text without pre-tokens or a vocab_size below 256 plus the
        special tokens.
        """
        return cls(*learn_tables(text, vocab_size, special_tokens))

    @classmethod
    def from_gpt2_files(
        cls, vocab_bpe: str | Path | None = None, encoder_json: str | Path | None = None
    ) -> Self:
        """Load GPT-2's vocabulary, by default from the course's cache (0.6 MB, once).

        Raises ValueError if a file's SHA-256 is not that of the original.
        """
        if vocab_bpe is None and encoder_json is None:
            vocab_bpe, encoder_json = fetch_gpt2_vocab()
        return cls(*read_gpt2_tables(Path(vocab_bpe), Path(encoder_json)))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a tokenizer that `save` wrote; ValueError if the file is damaged."""
        return cls(*read_tables(Path(path)))

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file, replacing what is there."""
        write_tables(Path(path), self.vocab, self.merges, self.special_tokens)

    def to_tiktoken(self) -> tiktoken.Encoding:
        """Return a `tiktoken.Encoding` with the same ids, which encodes much faster.

        Raises ValueError if one special token is a prefix of another.
        """
        return make_tiktoken(self._ids, self._ranks, self.special_tokens)

    @property
    def n_vocab(self) -> int:
        """The number of ids."""
        return len(self.vocab)

    @property
    def eot_token(self) -> int:
        """The id of <|endoftext|>; ValueError if this tokenizer was made without it."""
        if END_OF_TEXT not in self.special_tokens:
            raise ValueError(
                f"{END_OF_TEXT} is not among {sorted(self.special_tokens)}"
            )
        return self.special_tokens[END_OF_TEXT]

    def encode(
        self,
        text: str,
        *,
        allowed_special: Specials = (),
        disallowed_special: Specials = "all",
    ) -> list[int]:
        """Return the ids of `text`; special tokens in `allowed_special` become one id.

        Raises ValueError if the text contains one of `disallowed_special` (by default
        every special token that is not allowed). Both take "all", as in tiktoken.
        """
        allowed, refused = special_sets(
            self.special_tokens, allowed_special, disallowed_special
        )
        refuse_special(text, refused)
        ids = []
        for n, piece in enumerate(split_on_special(text, allowed)):
            ids += (
                [self.special_tokens[piece]] if n % 2 else self.encode_ordinary(piece)
            )
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of `text`, special tokens in it read as ordinary text."""
        ids = []
        for word in PRE_TOKENS.findall(replace_lone_surrogates(text)):
            if (found := self._cache.get(word)) is None:
                tokens = apply_merges(word.encode("utf-8"), self._ranks)
                found = [self._ids[token] for token in tokens]
                if len(self._cache) == 2**15:
                    self._cache.clear()
                if len(word) < 64:
                    self._cache[word] = found
            ids += found
        return ids

    def encode_iterable(
        self, chunks: Iterable[str], **rules: Specials
    ) -> Iterator[int]:
        """Yield the ids of the joined `chunks` (an open file, say), and store none.

        They are the ids that `encode("".join(chunks), **rules)` gives, as long as no
        chunk ends in the middle of a surrogate pair; `rules`: allowed_special and
        disallowed_special.
        """
        allowed, refused = special_sets(self.special_tokens, **rules)
        kept = ""
        for chunk in chunks:
            refuse_special(kept + chunk, refused)
            ready, kept = split_safely(kept + chunk, allowed | refused)
            yield from self.encode(ready, **rules)
        yield from self.encode(kept, **rules)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Raises ValueError for an id outside the vocabulary.
        """
        ids = [operator.index(i) for i in ids]
        if unknown := [i for i in ids if i not in self.vocab]:
            raise ValueError(
                f"id {unknown[0]} is outside the vocabulary, 0 ... {self.n_vocab - 1}"
            )
        return b"".join([self.vocab[i] for i in ids]).decode("utf-8", errors="replace")


class GPTDataset(Dataset):
    """Windows of `context_length` inputs with their targets, over a tensor of ids.

    Item i is (inputs, targets), both (T,) int64: token_ids[s : s + T] and [s + 1 : s +
    T + 1] with s = i * stride. They are views when `token_ids` is an int64 tensor;
    other integer types are converted window by window, so that a file of ids opened
    with np.memmap(path, np.uint16, mode="c") is never read as a whole.
    """

    def __init__(self, token_ids, context_length: int, stride: int | None = None):
        stride = context_length if stride is None else stride
        if context_length < 1 or stride < 1:
            raise ValueError(
                f"context_length and stride must be at least 1, "
                f"got {context_length} and {stride}"
            )
        ids = torch.as_tensor(token_ids)  # (N,), shares the memory where it can
        not_ids = ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool
        if ids.ndim != 1 or not_ids:
            raise ValueError(
                f"token_ids must be a row of integers, "
                f"got shape {tuple(ids.shape)} of {ids.dtype}"
            )
        if len(ids) < context_length + 1:
            raise ValueError(
                f"the text has {len(ids)} tokens, but one window needs "
                f"context_length + 1 = {context_length + 1}"
            )
        self.token_ids, self.context_length, self.stride = ids, context_length, stride

    def __len__(self) -> int:
        return (len(self.token_ids) - self.context_length - 1) // self.stride + 1

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} is outside 0 ... {len(self) - 1}")
        start = i * self.stride
        # T + 1 ids: inputs, and targets one further on
        window = self.token_ids[start : start + self.context_length + 1].to(torch.int64)
        return window[:-1], window[1:]


def create_dataloader(
    token_ids,
    batch_size: int,
    context_length: int,
    stride: int | None = None,
    *,
    shuffle: bool = True,
    seed: int = 123,
    drop_last: bool = True,
    num_workers: int = 0,
) -> DataLoader:
    """Return a loader of (inputs, targets), each (B, T) int64, over `token_ids` (N,).

    `stride` defaults to `context_length`; `seed` fixes the order of shuffling. Raises
    ValueError for sizes below 1, a text shorter than one window, or fewer windows than
    a batch.
    """
    dataset = GPTDataset(token_ids, context_length, stride)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if drop_last and len(dataset) < batch_size:
        raise ValueError(
            f"{len(dataset)} windows, fewer than batch_size = {batch_size}: "
            "drop_last leaves none"
        )
    order = torch.Generator().manual_seed(seed)
    return DataLoader(
        dataset,
        batch_size,
        shuffle,
        generator=order,
        drop_last=drop_last,
        num_workers=num_workers,
    )
