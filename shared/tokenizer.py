"""A byte-pair tokenizer that learns a text in a moment, lets no stranger write special
tokens, reads files of any size, and gives exactly GPT-2's ids.

Generated from ch02_text_data/ch02_tokenizer.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import pairwise, permutations
from pathlib import Path
from typing import Self

import regex
import tiktoken

from shared.support import read_json, refuse_text, require_whole, write_whole
from shared.support.fetch import fetch_gpt2_vocab
from shared.text_data import END_OF_TEXT, GPT2_PATTERN, Specials

__all__ = [
    "count_pre_tokens", "merge_pair", "train_bpe", "apply_merges",
    "gpt2_byte_of_character", "bytes_of", "BPETokenizer",
]  # fmt: skip

# Section 2.9: How can training be fast?
Pair = tuple[bytes, bytes]
PRE_TOKENS = regex.compile(GPT2_PATTERN)


def replace_lone_surrogates(text: str) -> str:
    """Return `text` with U+FFFD for lone surrogates, halves of a pair in UTF-16."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def split_on_special(text: str, special_tokens: Collection[str]) -> list[str]:
    """Cut `text` at the special tokens, longest first; they stand at the odd positions.

    >>> split_on_special("one<|endoftext|>two", {"<|endoftext|>"})
    ['one', '<|endoftext|>', 'two']
    """
    refuse_text(special_tokens=special_tokens)
    if not special_tokens:
        return [text]
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text)


def count_pre_tokens(text: str, special_tokens: Collection[str] = ()) -> Counter:
    """Count the pre-tokens of `text`, as UTF-8 bytes; special tokens are boundaries."""
    counts: Counter = Counter()
    for document in split_on_special(text, special_tokens)[::2]:
        counts.update(PRE_TOKENS.findall(replace_lone_surrogates(document)))
    return Counter({word.encode("utf-8"): n for word, n in counts.items()})


def merge_pair(parts: list, pair: tuple) -> list:
    """Return `parts` with every two neighbours `pair` glued together, left to right.

    >>> merge_pair(["l", "o", "l", "o", "l"], ("l", "o"))
    ['lo', 'lo', 'l']
    """
    left, right = pair
    merged: list = []
    for part in parts:
        if part == right and merged and merged[-1] == left:
            merged[-1] = left + right
        else:
            merged.append(part)
    return merged


class PairIndex:
    """The pairs of neighbours in some words: how often, in which words, the best."""

    def __init__(self, word_counts: Mapping[bytes, int]):
        self.words = [[bytes([byte]) for byte in word] for word in word_counts]
        self.times = list(word_counts.values())
        self.counts: Counter = Counter()
        # In which words a pair stands, or stood; and the pairs that occur so often.
        self.where: defaultdict[Pair, set[int]] = defaultdict(set)
        self.by_count: defaultdict[int, set[Pair]] = defaultdict(set)
        changes: Counter = Counter()
        for number in range(len(self.words)):
            self._note(number, changes)
        self._apply(changes)

    def _note(self, number: int, changes: Counter) -> None:
        for pair in pairwise(self.words[number]):
            changes[pair] += self.times[number]
            self.where[pair].add(number)

    def _apply(self, changes: Counter) -> None:
        for pair, change in changes.items():
            old, new = self.counts[pair], self.counts[pair] + change
            self.by_count[old].discard(pair)
            if not self.by_count[old]:
                del self.by_count[old]
            if new > 0:
                self.by_count[new].add(pair)
            self.counts[pair] = new

    def best(self) -> Pair | None:
        """Return the most frequent pair, in a tie the greatest, or None."""
        return max(self.by_count[max(self.by_count)]) if self.by_count else None

    def merge(self, pair: Pair) -> int:
        """Glue `pair` in every word that has it; return how many were looked at."""
        changes: Counter = Counter()
        numbers = self.where.pop(pair)
        for number in numbers:
            for neighbours in pairwise(self.words[number]):
                changes[neighbours] -= self.times[number]
            self.words[number] = merge_pair(self.words[number], pair)
            self._note(number, changes)
        self._apply(changes)
        return len(numbers)


def train_bpe(word_counts: Mapping[bytes, int], n_merges: int) -> list[Pair]:
    """Return at most `n_merges` merges of `word_counts` {pre-token: count}, best first.

    The most frequent pair of neighbours is merged; ties go to the lexicographically
    greater pair of byte strings. Fewer merges come back when every word has become a
    single token. Follows Sennrich, Haddow and Birch (2016), over bytes as in GPT-2.
    """
    require_whole(0, n_merges=n_merges)
    index = PairIndex(word_counts)
    merges: list[Pair] = []
    while len(merges) < n_merges and (pair := index.best()) is not None:
        index.merge(pair)
        merges.append(pair)
    return merges


# Section 2.10: What may a text say, and what not?
def apply_merges(word: bytes, ranks: Mapping[Pair, int]) -> list[bytes]:
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


def special_sets(
    text: str,
    known: Collection[str],
    allowed_special: Specials = (),
    disallowed_special: Specials = "all",
) -> tuple[set[str], set[str]]:
    """Return which special tokens become one id in `text`, and which are refused.

    Raises ValueError if the text contains one that is refused.
    """
    refuse_text(
        "all", allowed_special=allowed_special, disallowed_special=disallowed_special
    )
    every = set(known)
    allowed = every if allowed_special == "all" else every & set(allowed_special)
    refused = set(disallowed_special)
    if disallowed_special == "all":
        refused = every - allowed
    if found := split_on_special(text, refused)[1:2]:
        raise ValueError(
            f"the text contains the special token {found[0]!r}: allow it with "
            "allowed_special, or read it as ordinary text with disallowed_special=()"
        )
    return allowed, refused


def check_tables(vocab, merges, special_tokens) -> None:
    """Raise ValueError if vocabulary, merges and special tokens do not fit together."""
    refuse_text(vocab=vocab, merges=merges, special_tokens=special_tokens)
    if sorted(vocab) != list(range(len(vocab))):
        raise ValueError(f"the ids of the vocabulary are not 0 ... {len(vocab) - 1}")
    for text, i in special_tokens.items():
        if not text or vocab.get(i) != text.encode("utf-8"):
            raise ValueError(f"special token {text!r} is not in the vocabulary as {i}")
    ordinary = [vocab[i] for i in vocab.keys() - special_tokens.values()]
    known = set(ordinary)
    letters = [token for token in known if len(token) == 1]
    made = [left + right for left, right in merges]
    if len(known) < len(ordinary) or sorted(known) != sorted(letters + made):
        rule = f"single bytes and what its {len(made)} merges make"
        raise ValueError(f"the vocabulary is not {rule}")
    if unknown := {part for pair in merges for part in pair} - known:
        raise ValueError(f"{min(unknown)!r} is merged, but not in the vocabulary")


@dataclass(eq=False, repr=False)
class BPECodec:
    """Text to ids and back, with the tables of a byte-level byte-pair encoding.

    `vocab` maps ids to bytes, special tokens included; `merges` lists pairs of bytes in
    the order in which they were learned; `special_tokens` maps texts to ids; `pattern`
    cuts a text into pre-tokens. Bytes that the vocabulary lacks are dropped.
    """

    vocab: dict[int, bytes]
    merges: list[Pair]
    special_tokens: dict[str, int] = field(default_factory=dict)
    pattern: str = GPT2_PATTERN

    def __post_init__(self):
        check_tables(self.vocab, self.merges, self.special_tokens)
        ordinary = self.vocab.keys() - self.special_tokens.values()
        self._ids = {self.vocab[i]: i for i in sorted(ordinary)}
        self._missing = bytes(b for b in range(256) if bytes([b]) not in self._ids)
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._pre_tokens = regex.compile(self.pattern)
        self._ids_of_word = lru_cache(2**15)(self._encode_word)

    @property
    def n_vocab(self) -> int:
        """The number of ids."""
        return len(self.vocab)

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
        known = self.special_tokens
        allowed, _ = special_sets(text, known, allowed_special, disallowed_special)
        ids = []
        for n, piece in enumerate(split_on_special(text, allowed)):
            ids += [known[piece]] if n % 2 else self.encode_ordinary(piece)
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of `text`, special tokens in it read as ordinary text."""
        words = self._pre_tokens.findall(replace_lone_surrogates(text))
        return [i for word in words for i in self._ids_of_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        kept = word.encode("utf-8").translate(None, self._missing)
        return [self._ids[token] for token in apply_merges(kept, self._ranks)]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of `token_ids`; bytes that are not UTF-8 become U+FFFD.

        Raises ValueError for an id outside the vocabulary.
        """
        refuse_text(token_ids=token_ids)
        ids = [int(i) for i in token_ids]
        if unknown := [i for i in ids if i not in self.vocab]:
            raise ValueError(f"id {unknown[0]} is outside 0 ... {self.n_vocab - 1}")
        return b"".join(self.vocab[i] for i in ids).decode("utf-8", errors="replace")


# Section 2.11: What if the text does not fit in memory?
# GPT2_PATTERN always cuts behind each of these; (?r) searches from the end of the text.
LAST_CUT = regex.compile(r"(?r)\p{L}(?=\P{L})|\p{N}(?=\P{N})|\S(?=\s)")


def split_safely(text: str, special_tokens: Collection[str]) -> tuple[str, str]:
    """Cut `text` in two so that later text cannot change how the first part is encoded.

    >>> split_safely("the clock str", ())
    ('the clock', ' str')
    """
    # All is clear but the longest end that may begin a (longer) special token.
    beginnings = [token[:n] for token in special_tokens for n in range(1, len(token))]
    unclear = max((len(part) for part in beginnings if text.endswith(part)), default=0)
    clear = len(text) - unclear
    pieces = split_on_special(text, special_tokens)
    while (start := len("".join(pieces[:-1]))) > clear:
        pieces = pieces[:-2]  # the last special token reaches into the unclear end
    found = LAST_CUT.search(pieces[-1][: clear - start])
    cut = start + (found.end() if found else 0)
    return text[:cut], text[cut:]


# Section 2.12: How does it become the tokenizer that programs use?
@cache
def gpt2_byte_of_character() -> dict[str, int]:
    """Return GPT-2's table from characters in its files to the bytes they mean."""
    printable = [*range(ord("!"), ord("~") + 1)]
    printable += [*range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


def bytes_of(token: str) -> bytes:
    """Return the bytes that a token in GPT-2's alphabet means; KeyError if it is none.

    >>> bytes_of("\u0120clock")
    b' clock'
    """
    return bytes(gpt2_byte_of_character()[character] for character in token)


Tables = tuple[dict[int, bytes], list[Pair], dict[str, int], str]


def learn_tables(text: str, vocab_size: int, special_tokens: Iterable[str]) -> Tables:
    """Learn vocabulary, merges and special tokens; see `BPETokenizer.train`."""
    refuse_text(special_tokens=special_tokens)
    require_whole(vocab_size=vocab_size)
    special_tokens = list(dict.fromkeys(special_tokens))
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        rule = f"vocab_size must be at least {smallest} (bytes and special tokens)"
        raise ValueError(f"{rule}, got {vocab_size}")
    word_counts = count_pre_tokens(text, special_tokens)
    if not word_counts:
        raise ValueError(f"the corpus is empty: no text in its {len(text)} characters")
    merges = train_bpe(word_counts, vocab_size - smallest)
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [left + right for left, right in merges]
    special_ids = {token: len(tokens) + n for n, token in enumerate(special_tokens)}
    tokens += [token.encode("utf-8") for token in special_tokens]
    return dict(enumerate(tokens)), merges, special_ids, GPT2_PATTERN


def read_gpt2_tables() -> Tables:
    """Read GPT-2's vocabulary from the course's cache, where its hashes are checked."""
    vocab_bpe, encoder_json = fetch_gpt2_vocab()
    ids = read_json(encoder_json)
    vocab = {i: bytes_of(token) for token, i in ids.items()}
    _version, *lines = vocab_bpe.read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines]
    merges = [(bytes_of(left), bytes_of(right)) for left, right in pairs]
    return vocab, merges, {END_OF_TEXT: ids[END_OF_TEXT]}, GPT2_PATTERN


def make_tiktoken(ids, ranks, special_tokens, pattern) -> tiktoken.Encoding:
    """Return the same tokenizer as a tiktoken.Encoding; see `BPETokenizer.to_tiktoken`.

    `ids` maps ordinary tokens to their ids, `ranks` the merges to their order.
    """
    for short, long in permutations(special_tokens, 2):
        if long.startswith(short):
            raise ValueError(f"tiktoken may cut {long!r} behind {short!r}: rename one")
    made = [ids[left + right] for left, right in ranks]
    if len(ids) < 256 + len(made) or made != sorted(made):
        raise ValueError("tiktoken needs all 256 bytes, and ids in the order of merges")
    for left, right in ranks:
        if len(apply_merges(left + right, ranks)) > 1:
            raise ValueError(f"{left + right!r} is a token that the merges never make")
    return tiktoken.Encoding(
        "bpe", pat_str=pattern, mergeable_ranks=ids, special_tokens=special_tokens
    )


class BPETokenizer(BPECodec):
    """Byte-level byte-pair encoding as in GPT-2 (Radford et al., 2019); a `Tokenizer`.

    >>> tokenizer = BPETokenizer.train("the cat the mat", vocab_size=258)
    >>> tokenizer.decode(tokenizer.encode("the hat")), tokenizer.n_vocab
    ('the hat', 258)
    """

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
    def from_gpt2_files(cls) -> Self:
        """Load GPT-2's vocabulary through the course's cache (0.6 MB, once)."""
        return cls(*read_gpt2_tables())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a tokenizer that `save` wrote.

        Raises FileNotFoundError without a file, ValueError if it is damaged.
        """
        file = read_json(path)
        try:
            vocab = {int(i): t.encode("latin-1") for i, t in file["vocab"].items()}
            pairs = file["merges"]
            merges = [(a.encode("latin-1"), b.encode("latin-1")) for a, b in pairs]
            return cls(vocab, merges, file["special_tokens"], file["pattern"])
        except (ValueError, KeyError, TypeError, AttributeError, regex.error) as error:
            raise ValueError(f"{path} is no tokenizer's file: {error!r}") from None

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file, replacing what is there."""
        merges = [[part.decode("latin-1") for part in pair] for pair in self.merges]
        content = {
            "format": "llm-course byte-level BPE 2",
            "pattern": self.pattern,
            "vocab": {i: token.decode("latin-1") for i, token in self.vocab.items()},
            "merges": merges,
            "special_tokens": self.special_tokens,
        }
        write_whole(path, json.dumps(content, indent=0))

    def to_tiktoken(self) -> tiktoken.Encoding:
        """Return a `tiktoken.Encoding` with the same ids, which encodes much faster.

        Raises ValueError for what tiktoken cannot do: missing bytes, special tokens of
        which one begins another, or merges that were put together by hand.
        """
        return make_tiktoken(self._ids, self._ranks, self.special_tokens, self.pattern)

    @property
    def eot_token(self) -> int:
        """The id of <|endoftext|>; ValueError if this tokenizer was made without it."""
        if END_OF_TEXT not in self.special_tokens:
            raise ValueError(f"{END_OF_TEXT} is not in {sorted(self.special_tokens)}")
        return self.special_tokens[END_OF_TEXT]

    def encode_iterable(self, texts: Iterable[str], **rules: Specials) -> Iterator[int]:
        """Yield the ids of the joined `texts` (an open file, say), and store none.

        They are the ids that `encode("".join(texts), **rules)` gives, as long as no
        text ends in the middle of a surrogate pair; `rules`: allowed_special and
        disallowed_special. The pattern must be GPT-2's, or cut at least where it does.
        """
        kept = ""
        for text in texts:
            kept += text
            allowed, refused = special_sets(kept, self.special_tokens, **rules)
            ready, kept = split_safely(kept, allowed | refused)
            yield from self.encode(ready, **rules)
        yield from self.encode(kept, **rules)
