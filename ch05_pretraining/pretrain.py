"""Train a GPT on your own text, on one CPU or GPU, or on many.

    python ch05_pretraining/pretrain.py --text book.txt more/*.txt --out runs/books
    python ch05_pretraining/pretrain.py --tales 20000 --out runs/tales
    python ch05_pretraining/pretrain.py --out runs/tales --resume
    torchrun --nproc-per-node=8 ch05_pretraining/pretrain.py --text ... \\
        --config 124M --bfloat16 --compile --out runs/big

The text is tokenised once, into OUT/data. Checkpoints go to OUT/checkpoints, one line
of JSON per logged step to OUT/log.jsonl (seconds count from the start or the
resumption), and the finished model, with its tokenizer, to OUT/model; README.md shows
how to write with it. Ctrl-C finishes the step, saves a checkpoint and the model, and
stops; after that, or after a crash, --resume goes on with the settings of the first
call; --max-steps, --learning-rate and --keep may be given anew.

A step trains on --batch-size windows in all: several processes share them, so the same
command gives the same loss curve with any number of processes.
"""

import argparse
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from itertools import chain, count, islice
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from shared.gpt_model import GPT_CONFIGS, GPTConfig, GPTModel, count_parameters
from shared.pretraining import (
    TrainConfig,
    Trainer,
    evaluate,
    next_token_loss,
    save_model,
    train,
)
from shared.support import files, read_json, write_whole
from shared.support.course import get_device
from shared.support.tiny_tales import tales
from shared.text_data import END_OF_TEXT, GPTDataset, create_dataloader, load_text
from shared.tokenizer import BPETokenizer

SMALL = GPTConfig(4096, 256, emb_dim=256, n_heads=4, n_layers=6)
SIZES = {"small": SMALL} | GPT_CONFIGS
SAMPLE = 10_000_000  # characters from which the tokenizer learns
PIECE = 1_000_000  # characters, or tokens, that are in the works at a time

Batch = tuple[torch.Tensor, torch.Tensor]

# --- the command line -----------------------------------------------------------------


def option(default: Any, text: str, **more: Any) -> Any:
    """Return a field of Settings, with what argparse shall know of it."""
    shown = "" if default is None or default is False else f" (default: {default})"
    return field(default=default, metadata={"help": text + shown} | more)


def full_path(name: str) -> str:
    """Return a path that means the same from any working directory."""
    return str(Path(name).resolve())


@dataclass
class Settings:
    """What a run keeps, also when it is resumed; --max-steps sets max_steps."""

    text: list[str] | None = option(
        None, "plain text files, UTF-8", nargs="+", type=full_path, metavar="FILE"
    )
    tales: int | None = option(None, "instead of files, N stories of Tiny Tales")
    config: str = option(
        "small",
        "size of the model: small has 6 layers, 6M parameters, a context of 256 and "
        "4,096 tokens; mini is chapter 4's, the others are GPT-2's sizes",
        choices=SIZES,
    )
    vocab_size: int | None = option(None, "if not the size's; 50257: GPT-2's tokens")
    context_length: int | None = option(None, "tokens in a window, if not the size's")
    max_steps: int = option(1000, "steps of the optimizer")
    batch_size: int = option(16, "windows in a step, all processes together")
    accumulate: int = option(1, "parts of a step, one by one, to save memory")
    learning_rate: float = option(2e-3, "its highest value")
    warmup_steps: int | None = option(None, "until it is reached (default: 50 or less)")
    adamw: bool = option(False, "AdamW for everything, not Muon for matrices")
    bfloat16: bool = option(False, "mixed precision; for GPUs that have it")
    compile: bool = option(False, "torch.compile: a slow start, then faster")
    log_every: int = option(10, "a log line every N steps")
    eval_every: int = option(200, "validation every N steps")
    checkpoint_every: int = option(200, "a checkpoint every N steps")
    keep: int = option(2, "checkpoints to keep")
    seed: int = option(123, "of weights and data")


MAY_CHANGE = {"max_steps", "learning_rate", "keep"}  # when a run is resumed
MAY_BE_ZERO = {"warmup_steps", "seed"}


def words(names: list[str]) -> str:
    """Return the names of settings as they are written on the command line."""
    return ", ".join("--" + name.replace("_", "-") for name in names)


def make_parser() -> argparse.ArgumentParser:
    """Return a parser whose result holds only what was given."""
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    parser.description, parser.epilog = str(__doc__).split("\n\n", maxsplit=1)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    out_help = "where everything is written"
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=out_help)
    resume_help = "go on from the last checkpoint in DIR"
    parser.add_argument("--resume", action="store_true", help=resume_help)
    for setting in fields(Settings):
        more: dict[str, Any] = dict(setting.metadata)
        if setting.type is bool:
            more["action"] = "store_true"
        elif setting.type in (float, str):
            more["type"] = setting.type
        else:
            more = {"type": int, "metavar": "N"} | more
        parser.add_argument(words([setting.name]), **more)
    return parser


def arguments(argv: list[str] | None = None) -> tuple[Settings, Path, bool]:
    """Return the settings, with --resume those of the first call, --out and --resume.

    Ends the program if they do not fit together.
    """
    parser = make_parser()
    given = vars(parser.parse_args(argv))
    out = given.pop("out")
    resume = given.pop("resume", False)
    stored = {}
    if resume:
        if not (out / "settings.json").exists():
            parser.error(f"nothing to resume: {out / 'settings.json'} does not exist")
        stored = read_json(out / "settings.json")
        changed = [name for name, value in given.items() if value != stored.get(name)]
        if fixed := [name for name in changed if name not in MAY_CHANGE]:
            parser.error(f"a resumed run keeps its settings; leave out {words(fixed)}")
    settings = Settings(**(stored | given))
    if problem := what_is_wrong(settings, out, resume):
        parser.error(problem)
    return settings, out, resume


def what_is_wrong(settings: Settings, out: Path, resume: bool) -> str | None:
    """Return why a run cannot start with these settings, None if it can."""
    numbers = {name: n for name, n in asdict(settings).items() if type(n) is int}
    low = [name for name, n in numbers.items() if n < 1 and name not in MAY_BE_ZERO]
    if low:
        return f"must be at least 1: {words(low)}"
    parts = int(os.environ.get("WORLD_SIZE", 1)) * settings.accumulate
    if settings.batch_size % parts:
        return f"--batch-size {settings.batch_size} is not divisible by {parts} parts"
    if resume:
        return None
    if (settings.text is None) == (settings.tales is None):
        return "give either --text or --tales"
    if missing := [name for name in settings.text or [] if not Path(name).is_file()]:
        return f"--text: no such file: {', '.join(missing)}"
    if checkpoints(out):
        return f"{out} holds a run already: add --resume, or choose another --out"
    return None


# --- data -----------------------------------------------------------------------------


def documents(settings: Settings) -> Iterator[str]:
    """Yield every text; ValueError with the byte offset where a file is not UTF-8."""
    if settings.tales:
        for tale in tales(settings.seed, settings.tales):
            yield tale.text
    else:
        yield from map(load_text, settings.text or [])


def make_tokenizer(settings: Settings, vocab_size: int) -> BPETokenizer:
    """Return GPT-2's tokenizer, or one that learns from the start of the text."""
    if vocab_size == GPTConfig().vocab_size:
        return BPETokenizer.from_gpt2_files()
    sample = ""
    for text in documents(settings):
        sample += text[: SAMPLE - len(sample)] + "\n"
        if len(sample) >= SAMPLE:
            break
    return BPETokenizer.train(sample, vocab_size, [END_OF_TEXT])


def prepare_data(settings: Settings, config: GPTConfig, folder: Path) -> None:
    """Tokenise all text into a folder, if that has not been done already.

    The last 1/20 of the tokens, at most a million, is for validation.
    """
    done = folder / "data.json"
    source: list = [config.vocab_size, config.context_length]
    source += [settings.tales, settings.seed]
    source += [[name, Path(name).stat().st_size] for name in settings.text or []]
    if done.exists() and read_json(done)["source"] == source:
        return
    done.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(settings, config.vocab_size)
    dtype = np.uint16 if config.vocab_size <= 1 << 16 else np.uint32
    n_tokens = 0
    with (folder / "all.bin").open("wb") as file, tqdm(unit=" tokens") as bar:
        for text in documents(settings):
            pieces = (text[i : i + PIECE] for i in range(0, len(text), PIECE))
            ids = tokenizer.encode_iterable(pieces, disallowed_special=())
            ids = chain(ids, [tokenizer.eot_token])
            while some := list(islice(ids, PIECE)):
                np.array(some, dtype).tofile(file)
                n_tokens += len(some)
                bar.update(len(some))
    n_val = min(max(n_tokens // 20, config.context_length + 1), 1_000_000)
    if n_tokens < 2 * n_val:
        windows = f"windows of {config.context_length}"
        raise ValueError(f"too little text: {n_tokens} tokens for {windows}")
    tokenizer.save(folder / "tokenizer.json")
    facts = {"train": n_tokens - n_val, "dtype": np.dtype(dtype).name, "source": source}
    write_whole(done, json.dumps(facts))


def training_batches(
    windows: GPTDataset, settings: Settings, first_step: int
) -> Iterator[Batch]:
    """Yield this process's share of every step's random windows, from a step on."""
    parts = (n_processes(), settings.accumulate)
    rows = settings.batch_size // math.prod(parts)
    for step in count(first_step):
        seed = settings.seed * 1_000_003 + step
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randint(len(windows), (*parts, rows), generator=generator)
        for part in numbers[process()].tolist():
            yield default_collate([windows[i] for i in part])


# --- several processes ----------------------------------------------------------------


def process() -> int:
    """Return the number of this process: 0, the chief, or another of several."""
    return dist.get_rank() if dist.is_initialized() else 0


def n_processes() -> int:
    """Return how many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def any_process(flag: bool, device: torch.device) -> bool:
    """Say whether the flag is up in any process; all must call this together."""
    if not dist.is_initialized():
        return flag
    raised = torch.tensor(float(flag), device=device)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised)


class SharedTrainer(Trainer):
    """A trainer of a GPT whose batches are shared out among processes.

    `replica` is the model as it is called: compiled, or wrapped in
    DistributedDataParallel, which adds up the gradients of all processes. Then every
    token counts the same, whichever process has it.
    """

    model: GPTModel

    def __init__(self, model: GPTModel, config: TrainConfig, replica: nn.Module):
        super().__init__(
            model, config, lambda _, *batch: next_token_loss(replica, *batch)
        )
        self.no_sync = getattr(replica, "no_sync", nullcontext)

    def add_gradients(self, batches: list[tuple]) -> tuple[float, float]:
        """Add up the gradients of all processes; return all losses and what counts."""
        if n_processes() == 1:
            return super().add_gradients(batches)
        with self.no_sync():  # gradients travel once in a step, with the last batch
            first = super().add_gradients(batches[:-1])
        last = super().add_gradients(batches[-1:])
        sums = torch.tensor([first, last], dtype=torch.float64).sum(dim=0)
        sums = sums.to(self.device)
        dist.all_reduce(sums)
        for p in self.weights:
            if p.grad is not None:
                p.grad *= n_processes()  # DistributedDataParallel has divided by it
        total, n_targets = sums.tolist()
        return total, n_targets


# --- checkpoints ----------------------------------------------------------------------


def checkpoints(out: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted((out / "checkpoints").glob("step-*"))


def store(trainer: Trainer, out: Path, keep: int) -> None:
    """Write a checkpoint, then delete all but the last `keep`."""
    files.save_checkpoint(trainer, out / "checkpoints" / f"step-{trainer.step:08d}")
    for old in checkpoints(out)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def load_last(trainer: Trainer, out: Path) -> None:
    """Load the newest checkpoint that is whole, if there is one at all."""
    problems = 0
    for folder in reversed(checkpoints(out)):
        try:
            return files.load_checkpoint(trainer, folder)
        except (ValueError, FileNotFoundError) as error:
            print(f"warning: {error}", file=sys.stderr)
            problems += 1
    if problems:
        raise ValueError("no checkpoint can be used; see the warnings above")


def clear_up(out: Path, step: int) -> None:
    """Remove what a killed run left half written or logged after its checkpoint."""
    for leftover in (out / "checkpoints").glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if (log := out / "log.jsonl").exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("}\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        write_whole(log, "".join(kept))


# --- the run --------------------------------------------------------------------------


def make_trainer(
    settings: Settings, config: GPTConfig, device: torch.device
) -> SharedTrainer:
    """Return the trainer of a fresh model on a device."""
    warmup_steps = settings.warmup_steps
    if warmup_steps is None:
        warmup_steps = min(50, settings.max_steps // 10)
    training = TrainConfig(
        settings.max_steps,
        settings.learning_rate,
        muon=not settings.adamw,
        warmup_steps=warmup_steps,
        accumulate=settings.accumulate,
        bfloat16=settings.bfloat16,
    )
    torch.manual_seed(settings.seed)
    model = GPTModel(config).to(device)
    replica: Any = DistributedDataParallel(model) if n_processes() > 1 else model
    if settings.compile:
        replica = torch.compile(replica)
    return SharedTrainer(model, training, replica)


def stop_on_signal() -> Event:
    """Return an event that is set when the program shall finish its step and stop."""
    stop = Event()

    def ask_to_stop(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # a second time, stop at once
        print(
            "\nfinishing this step, then saving (once more: stop at once)", flush=True
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    return stop


def make_config(settings: Settings) -> GPTConfig:
    """Return the model's configuration: that of its size, with what was given."""
    config = SIZES[settings.config]
    return replace(
        config,
        vocab_size=settings.vocab_size or config.vocab_size,
        context_length=settings.context_length or config.context_length,
    )


def open_data(folder: Path, context_length: int) -> tuple[GPTDataset, DataLoader]:
    """Return the windows to train on, and batches for validation, no overlaps."""
    facts = read_json(folder / "data.json")
    ids = np.memmap(folder / "all.bin", dtype=facts["dtype"], mode="c")
    n_train = facts["train"]
    windows = GPTDataset(ids[:n_train], context_length, stride=1)
    held_out = create_dataloader(
        ids[n_train:], 16, context_length, shuffle=False, drop_last=False
    )
    return windows, held_out


def run(settings: Settings, out: Path, resume: bool, device: torch.device) -> None:
    """Train as the settings say."""
    chief = process() == 0
    config = make_config(settings)
    data = out / "data"
    if chief and not (resume and (data / "data.json").exists()):
        prepare_data(settings, config, data)
    if n_processes() > 1:
        dist.barrier()
    tokenizer = BPETokenizer.load(data / "tokenizer.json")
    config = replace(config, vocab_size=tokenizer.n_vocab)  # a short text has fewer
    windows, held_out = open_data(data, config.context_length)
    trainer = make_trainer(settings, config, device)
    if resume:
        load_last(trainer, out)
    log = Path(os.devnull)
    if chief:
        log = out / "log.jsonl"
        clear_up(out, trainer.step)
        write_whole(out / "settings.json", json.dumps(asdict(settings), indent=1))
        print(f"{count_parameters(trainer.model):,} parameters, ", end="")
        print(f"a vocabulary of {config.vocab_size:,}, ", end="")
        print(f"{len(windows.token_ids):,} tokens to train on, ", end="")
        print(f"{n_processes()} process(es) on {device}, from step {trainer.step}")

    stop = stop_on_signal()
    batches = training_batches(windows, settings, trainer.step)
    with log.open("a", encoding="utf-8") as file:
        for record in train(trainer, batches, progress=chief):
            step = record["step"]
            at_end = step == settings.max_steps
            if chief and (at_end or step % settings.eval_every == 0):
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=settings.bfloat16
                ):
                    record["val_loss"] = evaluate(trainer.model, islice(held_out, 20))
            if at_end or step % settings.log_every == 0 or "val_loss" in record:
                print(json.dumps(record), file=file, flush=True)
            if chief and not at_end and step % settings.checkpoint_every == 0:
                store(trainer, out, settings.keep)
            if any_process(stop.is_set(), device):
                break
    if chief:
        store(trainer, out, settings.keep)
        save_model(trainer.model, out / "model", tokenizer)
        print(f"step {trainer.step} of {settings.max_steps} is done; ", end="")
        print(f"the model is in {out / 'model'}")
        if trainer.step < settings.max_steps:
            print(f"to go on, give --out {out} --resume")


def choose_device() -> torch.device:
    """Return this process's device."""
    device = get_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    return device


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        settings, out, resume = arguments(argv)
        device = choose_device()
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            patience = timedelta(hours=12)  # tokenising may take some
            dist.init_process_group(backend, timeout=patience)
        run(settings, out, resume, device)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
