"""You turn any text into the numbers that a language model starts from, with a
tokenizer of your own that gives GPT-2's ids, one for one.

Generated from ch02_text_data/ch02_text_data.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, Protocol

import tiktoken.load
import torch
from torch.utils.data import DataLoader, Dataset

from shared.support import COURSE, refuse_text, require_whole
from shared.support.fetch import ARTIFACTS, fetch, fetch_gpt2_vocab

__all__ = [
    "load_text", "END_OF_TEXT", "GPT2_PATTERN", "load_gpt2_encoding", "Specials",
    "Tokenizer", "GPTDataset", "create_dataloader",
]  # fmt: skip


# Section 2.2: How should a text be cut into pieces?
def load_text(source: str | Path | None = None) -> str:
    """Return the course's story, a public text by name, or the file at a path.

    Names: "the-verdict" (Edith Wharton, 1908), downloaded once on request and
    hash-checked. Raises FileNotFoundError for anything else that is no file, and
    ValueError, with the number of the bad byte, for a file that is not UTF-8.
    """
    path = COURSE / "ch01_intro" / "story.txt" if source is None else Path(source)
    if f"texts/{source}.txt" in ARTIFACTS:
        path = fetch(f"texts/{source}.txt")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file, and no name of a public text")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text at byte {error.start}") from None


# Section 2.3: How does byte-pair encoding learn its pieces?
END_OF_TEXT = "<|endoftext|>"
GPT2_PATTERN = (  # how GPT-2 cuts a text before any merge
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


# Section 2.4: Is this GPT-2's tokenizer?
def load_gpt2_encoding() -> tiktoken.Encoding:
    """Return GPT-2's tokenizer (Radford et al., 2019); tiktoken builds it from 2 files.

    The same as `tiktoken.get_encoding("gpt2")`, but through the course's own cache.
    """
    vocab_bpe, encoder_json = map(str, fetch_gpt2_vocab())
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(vocab_bpe, encoder_json)
    special = {END_OF_TEXT: len(ranks)}
    return tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


Specials = Literal["all"] | Collection[str]


class Tokenizer(Protocol):
    """What later chapters ask of a tokenizer; tiktoken.Encoding does it, and ours.

    `n_vocab` is the number of ids (the largest plus one), `eot_token` the id of
    <|endoftext|>. Of the special tokens, those in `allowed_special` become one id, and
    those in `disallowed_special` are a ValueError.
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

    def decode(self, token_ids: Sequence[int], /) -> str: ...


# Section 2.5: How does one text become training examples?
class GPTDataset(Dataset):
    """Windows of `context_length` inputs with their targets, over a row of token ids.

    Item i is (inputs, targets), both (T,) int64: token_ids[s : s + T] and [s + 1 : s +
    T + 1] with s = i * stride. They are views when `token_ids` is an int64 tensor;
    other integer types are converted window by window, so that a file of ids opened
    with np.memmap(path, np.uint16, mode="c") is never read as a whole. Raises
    ValueError for fewer ids than a window needs, or numbers that are no ids.
    """

    def __init__(self, token_ids, context_length: int, stride: int | None = None):
        refuse_text(token_ids=token_ids)
        require_whole(context_length=context_length)
        self.token_ids = torch.as_tensor(token_ids)  # (N,), shares memory if it can
        self.context_length = context_length
        self.stride = context_length if stride is None else stride
        require_whole(stride=self.stride)
        if len(self.token_ids) <= context_length:
            text = f"the text has {len(self.token_ids)} tokens, but one window needs"
            raise ValueError(f"{text} context_length + 1 = {context_length + 1}")
        if self.token_ids.ndim != 1 or self.token_ids.is_floating_point():
            found = f"{tuple(self.token_ids.shape)} {self.token_ids.dtype}"
            raise ValueError(f"token ids must be (N,) whole numbers, got {found}")

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
) -> DataLoader:
    """Return a loader of (inputs, targets), each (B, T) int64, over `token_ids` (N,).

    `stride` defaults to `context_length`; `seed` fixes the order of shuffling. Raises
    ValueError for a text shorter than one window, or fewer windows than a batch.
    """
    dataset = GPTDataset(token_ids, context_length, stride)
    if drop_last and len(dataset) < batch_size:
        raise ValueError(f"{len(dataset)} windows do not fill a batch of {batch_size}")
    draw = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size, shuffle, generator=draw, drop_last=drop_last)
