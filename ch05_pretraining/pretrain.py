"""Train a GPT on your own text, on one CPU or GPU, or on many.

    python ch05_pretraining/pretrain.py --text book.txt more/*.txt --out runs/books
    python ch05_pretraining/pretrain.py --tales 20000 --out runs/tales
    python ch05_pretraining/pretrain.py --out runs/tales --resume
    torchrun --nproc-per-node=8 ch05_pretraining/pretrain.py --text ... \\
        --config 124M --bfloat16 --compile --out runs/big

The text is tokenised once, into OUT/data; a file's end, and a line <|endoftext|> in it,
end a document. The last 1/20 of the characters (between 5,000 and 4 million, at most
half) is for validation; the tokenizer learns from the rest. Checkpoints go to
OUT/checkpoints, one line of JSON per logged step to OUT/log.jsonl (seconds count from
the start or the resumption), and the finished model, with its tokenizer, to OUT/model;
.site/programs.md shows how to write with it, .site/evening.md how it learns to chat.
Ctrl-C finishes the step, saves a checkpoint and the model, and stops; after that, or
after a crash, --resume goes on with the settings of the first call; --max-steps,
--learning-rate and --keep may be given anew.

A step trains on --batch-size windows in all: several processes share them, so the same
command gives the same loss curve with any number of processes.
"""

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from glob import glob
from itertools import count, islice
from pathlib import Path
from threading import Event
from typing import Any, get_args, get_origin

import torch
from checkpoints import (
    add_checkpoint,
    checkpoints,
    load_newest,
    locked,
    set_aside,
    tidy_checkpoints,
)
from corpus import Corpus, hashes, open_data, prepare_data
from processes import (
    SharedTrainer,
    any_process,
    end_processes,
    n_processes,
    process,
    start_processes,
    wait_for_all,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from shared.gpt_model import GPT_CONFIGS, GPTConfig, GPTModel, count_parameters
from shared.pretraining import (
    TrainConfig,
    Trainer,
    evaluate,
    generate,
    save_model,
    train,
)
from shared.support import name_file, read_json, write_whole
from shared.text_data import GPTDataset
from shared.tokenizer import BPETokenizer

SMALL = GPTConfig(4096, 256, emb_dim=256, n_heads=4, n_layers=6)
SIZES = {"small": SMALL} | GPT_CONFIGS

Batch = tuple[torch.Tensor, torch.Tensor]

# --- the command line -----------------------------------------------------------------


def option(default: Any, text: str, **more: Any) -> Any:
    """Return a field of Settings, with what argparse shall know of it."""
    shown = "" if default is None or default is False else f" (default: {default})"
    return field(default=default, metadata={"help": text + shown} | more)


@dataclass
class Settings:
    """What a run keeps, also when it is resumed; --max-steps sets max_steps."""

    text: list[str] | None = option(
        None, "plain text files, UTF-8", nargs="+", type=str, metavar="FILE"
    )
    tales: int | None = option(None, "instead of text, N stories of Tiny Tales")
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
    sha256: list[str] | None = None  # of the text files, when the run began


MAY_CHANGE = {"max_steps", "learning_rate", "keep"}  # when a run is resumed
MAY_BE_ZERO = {"warmup_steps", "seed"}
MOST = 2**63 - 1  # what a random generator takes


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
    for setting in fields(Settings)[:-1]:  # the hashes are not given
        more: dict[str, Any] = dict(setting.metadata)
        if setting.type is bool:
            more["action"] = "store_true"
        elif setting.type in (float, str):
            more["type"] = setting.type
        else:
            more = {"type": int, "metavar": "N"} | more
        parser.add_argument(words([setting.name]), **more)
    return parser


def text_files(names: list[str]) -> list[str]:
    """Return full paths, with patterns expanded, which not every shell does."""
    found: list[str] = []
    for name in names:
        matches = [] if Path(name).exists() else sorted(glob(name, recursive=True))
        found += matches or [name]
    for name in found:
        if Path(name).is_dir():
            raise ValueError(f"--text: {name} is a folder: give {Path(name) / '*.txt'}")
        if not Path(name).is_file():
            raise FileNotFoundError(f"--text: no such file: {name}")
    return [os.path.abspath(name) for name in found]


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings that a run has stored; ValueError if they are damaged."""
    stored = read_json(path)
    whole = isinstance(stored, dict) and stored.keys() == asdict(Settings()).keys()
    for setting in fields(Settings) if whole else []:
        kinds = get_args(setting.type) or [setting.type]
        whole &= type(stored[setting.name]) in [
            get_origin(kind) or kind for kind in kinds
        ]
    if not whole:
        raise ValueError(f"{path} is damaged: these are no settings of this program")
    return stored


def arguments(argv: list[str] | None = None) -> tuple[Settings, Path]:
    """Return the settings, with --resume those of the first call, and --out.

    Ends the program if they do not fit together.
    """
    parser = make_parser()
    given = vars(parser.parse_args(argv))
    out = given.pop("out")
    resume = given.pop("resume", False)
    if "text" in given:
        given["text"] = text_files(given["text"])
    stored = {}
    if resume and (out / "settings.json").exists():
        stored = read_settings(out / "settings.json")
        changed = [name for name, value in given.items() if value != stored[name]]
        if fixed := [name for name in changed if name not in MAY_CHANGE]:
            parser.error(f"a resumed run keeps its settings; leave out {words(fixed)}")
    elif resume and not given.keys() & {"text", "tales"}:
        parser.error(f"nothing to resume: {out / 'settings.json'} does not exist")
    elif not resume and checkpoints(out / "checkpoints"):
        parser.error(f"{out} holds a run already: add --resume, or choose another")
    settings = Settings(**(stored | given))
    if problem := what_is_wrong(settings):
        parser.error(problem)
    return settings, out


def what_is_wrong(settings: Settings) -> str | None:
    """Return why a run cannot start with these settings, None if it can."""
    numbers = {name: n for name, n in asdict(settings).items() if type(n) is int}
    if low := [name for name, n in numbers.items() if n < (name not in MAY_BE_ZERO)]:
        return f"must be at least {int(low[0] not in MAY_BE_ZERO)}: {words(low)}"
    if high := [name for name, n in numbers.items() if n > MOST]:
        return f"must be at most {MOST}: {words(high)}"
    parts = int(os.environ.get("WORLD_SIZE", 1)) * settings.accumulate
    if settings.batch_size % parts:
        return f"--batch-size {settings.batch_size} is not divisible by {parts} parts"
    if (settings.text is None) == (settings.tales is None):
        return "give either --text or --tales"
    return None


# --- the run --------------------------------------------------------------------------


def training_batches(
    windows: GPTDataset, settings: Settings, first_step: int
) -> Iterator[Batch]:
    """Yield this process's share of every step's random windows, from a step on."""
    parts = (n_processes(), settings.accumulate)
    rows = settings.batch_size // math.prod(parts)
    for step in count(first_step):
        seed = (settings.seed * 1_000_003 + step) & MOST
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randint(len(windows), (*parts, rows), generator=generator)
        for part in numbers[process()].tolist():
            yield default_collate([windows[i] for i in part])


def train_config(settings: Settings) -> TrainConfig:
    """Return how to train; ValueError for a setting out of range."""
    names = "max_steps", "learning_rate", "warmup_steps", "accumulate", "bfloat16"
    given: dict[str, Any] = {name: getattr(settings, name) for name in names}
    if settings.warmup_steps is None:
        given["warmup_steps"] = min(50, settings.max_steps // 10)
    return TrainConfig(**given, muon=not settings.adamw)


def make_trainer(
    settings: Settings, config: GPTConfig, device: torch.device
) -> SharedTrainer:
    """Return the trainer of a fresh model on a device."""
    torch.manual_seed(settings.seed)
    model = GPTModel(config).to(device)
    replica: Any = DistributedDataParallel(model) if n_processes() > 1 else model
    if settings.compile:
        replica = torch.compile(replica)
    return SharedTrainer(model, train_config(settings), replica)


def stop_on_signal() -> Event:
    """Return an event that is set when the program shall finish its step and stop."""
    stop = Event()

    def ask_to_stop(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # a second time, stop at once
        print("\nsaving after this step (once more: stop at once)", flush=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    return stop


def make_config(settings: Settings) -> GPTConfig:
    """Return the model's configuration: that of its size, with what was given."""
    names = "vocab_size", "context_length"
    given = {name: n for name in names if (n := getattr(settings, name))}
    return replace(SIZES[settings.config], **given)


def begin(settings: Settings, vocab_size: int, out: Path) -> None:
    """Tidy up after a killed run, keep the settings, and tokenise the text."""
    tidy_checkpoints(out / "checkpoints")
    settings.sha256 = settings.sha256 or hashes(settings.text or [])
    write_whole(out / "settings.json", json.dumps(asdict(settings), indent=1))
    text, n_tales = settings.text or [], settings.tales or 0
    corpus = Corpus(text, settings.sha256, n_tales, settings.seed, vocab_size)
    prepare_data(corpus, out / "data")


def cut_log(log: Path, step: int) -> None:
    """Leave out what a killed run logged after its checkpoint, and half a line."""

    def is_kept(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, LookupError, TypeError):
            return False

    if log.exists():
        lines = log.read_text("utf-8", errors="replace").splitlines()
        write_whole(log, "".join(f"{line}\n" for line in lines if is_kept(line)))


def add_to_log(log: Path, record: dict) -> None:
    """Append a line; the path is in the message if it cannot be written."""
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        name_file(error, log)
        raise


def after_step(
    trainer: Trainer, record: dict, settings: Settings, held_out: DataLoader, out: Path
) -> None:
    """Evaluate, log and store a checkpoint, whenever it is time to."""
    kind, step = trainer.device.type, trainer.step
    at_end = step == settings.max_steps
    if at_end or step % settings.eval_every == 0:
        with torch.autocast(kind, torch.bfloat16, enabled=settings.bfloat16):
            record["val_loss"] = evaluate(trainer.model, islice(held_out, 20))
        tqdm.write(f"step {step}: validation loss {record['val_loss']:.2f}")
    if step % settings.log_every == 0 or "val_loss" in record:
        add_to_log(out / "log.jsonl", record)
    if step % settings.checkpoint_every == 0:
        add_checkpoint(trainer, out / "checkpoints", settings.keep)


def written(model: GPTModel, tokenizer: BPETokenizer) -> str:
    """Return a text that a model writes, or the beginning of it."""
    end = tokenizer.eot_token
    start = torch.tensor([[end]], device=model.device)
    ids = generate(model, start, 120, temperature=0.8, stop_token=end)[0].tolist()
    return tokenizer.decode(i for i in ids if i != end)


def run(settings: Settings, out: Path, device: torch.device) -> None:
    """Tokenise, go on from a checkpoint if there is one, train and save the model."""
    chief = process() == 0
    config = make_config(settings)
    train_config(settings)  # what is out of range shall not be kept
    if chief:
        begin(settings, config.vocab_size, out)
    wait_for_all()
    tokenizer = BPETokenizer.load(out / "data" / "tokenizer.json")
    config = replace(config, vocab_size=tokenizer.n_vocab)  # a short text has fewer
    windows, held_out = open_data(out / "data", config.context_length)
    trainer = make_trainer(settings, config, device)
    useless = load_newest(trainer, out / "checkpoints")
    if chief:
        for checkpoint in useless:
            set_aside(checkpoint)
        cut_log(out / "log.jsonl", trainer.step)
        print(f"{count_parameters(trainer.model):,} parameters, ", end="")
        print(f"a vocabulary of {config.vocab_size:,}, ", end="")
        print(f"{len(windows.token_ids):,} tokens to train on, ", end="")
        print(f"{n_processes()} process(es) on {device}, from step {trainer.step}")
    stop = stop_on_signal()
    batches = training_batches(windows, settings, trainer.step)
    for record in train(trainer, batches, progress=chief):
        if chief:
            after_step(trainer, record, settings, held_out, out)
        if any_process(stop.is_set(), device):
            break
    if chief:
        add_checkpoint(trainer, out / "checkpoints", settings.keep)
        save_model(trainer.model, out / "model", tokenizer)
        print(f"step {trainer.step} of {settings.max_steps} is done; ", end="")
        print(f"the model is in {out / 'model'}")
        if trainer.step < settings.max_steps:
            print(f"to go on, give --out {out} --resume")
        print(f"It writes:\n{written(trainer.model, tokenizer)}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        settings, out = arguments(argv)
        device = start_processes()
        with locked(out) if process() == 0 else nullcontext():
            run(settings, out, device)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped before the training; to go on, add --resume", file=sys.stderr)
        return 130
    finally:
        end_processes()
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(main())
