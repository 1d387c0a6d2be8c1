"""The data of pretrain.py: text files, or Tiny Tales, as a file of token ids.

A file's end, and a line <|endoftext|> in it, end a document, which becomes one id. The
last 1/20 of the characters (between 5,000 and 4 million, at most half) is for
validation; the tokenizer learns from the rest.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader
from tqdm import tqdm

from shared.gpt_model import GPTConfig
from shared.support import COURSE, files, read_json, sha256_of, write_whole
from shared.support.tiny_tales import tales
from shared.text_data import END_OF_TEXT, GPTDataset, create_dataloader, load_text
from shared.tokenizer import BPETokenizer

SAMPLE = 10_000_000  # characters from which the tokenizer learns
PIECE = 1_000_000  # characters, or tokens, that are in the works at a time
FORMAT = 3  # to be raised when the same text becomes other ids
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>"]  # for conversations, should it learn any
TALES = str(COURSE / "ch05_pretraining" / "tiny_tales.json")
END_OF_DOCUMENT = re.compile(rf"^{re.escape(END_OF_TEXT)}(?:\n|\Z)", re.MULTILINE)


@dataclass
class Corpus:
    """Texts, and all else that their token ids depend on."""

    text: list[str]  # files; none: Tiny Tales
    sha256: list[str]  # of every file, or of the rules of Tiny Tales
    tales: int
    seed: int  # of the tales
    vocab_size: int  # GPT-2's: its tokenizer; otherwise one learns
    format: int = FORMAT

    def documents(self) -> Iterator[str]:
        """Yield every document; ValueError where a file is not UTF-8."""
        for tale in tales(self.seed, self.tales):
            yield tale.text
        for name in self.text:
            yield from filter(str.strip, END_OF_DOCUMENT.split(load_text(name)))

    def part(self, start: int, stop: int) -> Iterator[tuple[str, bool]]:
        """Yield what stands between two characters, and whether a document ends."""
        for text in self.documents():
            if piece := text[max(0, start) : max(0, stop)]:
                yield piece, stop >= len(text)
            start, stop = start - len(text), stop - len(text)
            if stop <= 0:
                return

    def token_ids(
        self, tokenizer: BPETokenizer, start: int, stop: int
    ) -> Iterator[int]:
        """Yield the ids of what stands between two characters."""
        for text, at_the_end in self.part(start, stop):
            pieces = (text[i : i + PIECE] for i in range(0, len(text), PIECE))
            yield from tokenizer.encode_iterable(pieces, disallowed_special=())
            if at_the_end:
                yield tokenizer.eot_token

    def make_tokenizer(self, n_train: int) -> BPETokenizer:
        """Return GPT-2's tokenizer, or one that learns from the training part."""
        if self.vocab_size == GPTConfig().vocab_size:
            return BPETokenizer.from_gpt2_files()
        sample = "\n".join(text for text, _ in self.part(0, min(n_train, SAMPLE)))
        return BPETokenizer.train(sample, self.vocab_size, [END_OF_TEXT, *CHAT_TOKENS])

    def report(self, n_documents: int) -> None:
        """Print how many documents there are, and how often the texts end one."""
        texts = [load_text(name) for name in self.text]
        n_lines = sum(len(END_OF_DOCUMENT.findall(text)) for text in texts)
        n_within = sum(text.count(END_OF_TEXT) for text in texts) - n_lines
        print(f"{n_documents:,} documents; lines {END_OF_TEXT} found: {n_lines:,}")
        if n_within:
            print(f"{n_within:,} more stand within a line, and are read as plain text")

    def source(self) -> dict:
        """Return by what the data of this corpus are recognised."""
        no_matter = {"text"} if self.tales else {"text", "seed"}  # names of files
        facts = asdict(self).items()
        return {name: it for name, it in facts if name not in no_matter}


def hashes(text: list[str]) -> list[str]:
    """Return the SHA-256 of every file, or of the rules of Tiny Tales."""
    return [sha256_of(path) for path in text or [TALES]]


def write_data(corpus: Corpus, new: Path) -> None:
    """Tokenise training part and validation part into a new folder."""
    lengths = [len(text) for text in corpus.documents()]
    total = sum(lengths)
    n_train = total - min(max(total // 20, 5_000), total // 2, 4_000_000)
    if not n_train:
        raise ValueError("too little text: none at all")
    corpus.report(len(lengths))
    tokenizer = corpus.make_tokenizer(n_train)
    tokenizer.save(new / "tokenizer.json")
    dtype = np.dtype(np.uint16 if tokenizer.n_vocab <= 1 << 16 else np.uint32)
    sizes = []
    with (new / "all.bin").open("wb") as file, tqdm(unit=" tokens") as bar:
        for start, stop in ((0, n_train), (n_train, total)):
            ids = corpus.token_ids(tokenizer, start, stop)
            while some := list(islice(ids, PIECE)):
                file.write(np.array(some, dtype).tobytes())
                bar.update(len(some))
            sizes.append(file.tell() // dtype.itemsize)
    facts = {"train": sizes[0], "n_tokens": sizes[1], "dtype": dtype.name}
    facts["sha256"] = {path.name: sha256_of(path) for path in sorted(new.iterdir())}
    write_whole(new / "data.json", json.dumps(facts | {"source": corpus.source()}))


def is_done(corpus: Corpus, folder: Path) -> bool:
    """Say whether a folder holds the data of this corpus, whole."""
    try:
        facts = read_json(folder / "data.json")
        found = {name: sha256_of(folder / name) for name in facts["sha256"]}
        return facts["source"] == corpus.source() and facts["sha256"] == found
    except (ValueError, OSError, LookupError, TypeError):
        return False


def made_before(folder: Path) -> bool:
    """Say whether another version of this program has made a folder's data."""
    try:
        return read_json(folder / "data.json")["source"]["format"] != FORMAT
    except (ValueError, OSError, LookupError, TypeError):
        return False


def prepare_data(corpus: Corpus, folder: Path) -> None:
    """Tokenise a corpus into a folder, if that has not been done already.

    Raises ValueError if a file is not the one whose hash the corpus has.
    """
    known = zip(corpus.text or [TALES], corpus.sha256, strict=True)
    gone = [n for n, it in known if not Path(n).is_file() or sha256_of(n) != it]
    names, done = ", ".join(gone), is_done(corpus, folder)
    if made_before(folder):
        rule = "go on with that version, or begin another run"
        raise ValueError(f"{folder} was made by another version of this: {rule}")
    if gone and not done:
        rule = "put it back as it was, or begin another run"
        raise ValueError(f"{names} changed since the run began: {rule}")
    if gone:
        print(f"{names} changed; the run keeps what it has read before")
    if not done:
        files.write_folder(folder, lambda new: write_data(corpus, new))


def open_data(folder: Path, context_length: int) -> tuple[GPTDataset, DataLoader]:
    """Return the windows to train on, and batches for validation, no overlaps."""
    facts = read_json(folder / "data.json")
    ids = np.memmap(folder / "all.bin", dtype=facts["dtype"], mode="c")
    training, held_out = ids[: facts["train"]], ids[facts["train"] :]
    if min(len(training), len(held_out)) <= context_length:
        found = f"{len(training)} tokens to train on, {len(held_out)} for validation"
        rule = f"a context of {context_length} needs {context_length + 1} of each"
        raise ValueError(f"too little text: {found}; {rule}")
    return GPTDataset(training, context_length, stride=1), create_dataloader(
        held_out, 16, context_length, shuffle=False, drop_last=False
    )
