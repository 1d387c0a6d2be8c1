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
call; --steps, --learning-rate and --keep may be given anew.

A step trains on --batch-size windows in all: several processes share them, so the same
command gives the same loss curve with any number of processes.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from shared.gpt_model import GPT_CONFIGS, GPTConfig, GPTModel, count_parameters
from shared.intro import get_device
from shared.pretraining import (
    TrainConfig,
    Trainer,
    evaluate,
    learning_rate_at,
    load_checkpoint,
    save_checkpoint,
    save_model,
    train_model,
)
from shared.text_data import END_OF_TEXT, BPETokenizer
from shared.tiny_tales import tales

SMALL = GPTConfig(4096, 256, emb_dim=256, n_heads=4, n_layers=6)
SIZES = {"small": SMALL} | GPT_CONFIGS
CHUNK = 1 << 20  # bytes read at a time


class Formatter(
    argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter
):
    """Keeps line breaks, and adds every option's default."""


class Stop(Exception):
    """Raised between two steps after Ctrl-C or a request to terminate."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's settings; with --resume, those of the first call."""
    description, epilog = __doc__.split("\n\n", maxsplit=1)
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=Formatter
    )
    add = parser.add_argument
    add(
        "--text",
        nargs="+",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="plain text files, UTF-8",
    )
    add(
        "--tales",
        type=int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="instead of files, N stories of Tiny Tales",
    )
    add(
        "--out",
        type=Path,
        required=True,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="where everything is written",
    )
    add("--resume", action="store_true", help="go on from the last checkpoint in DIR")
    add(
        "--config",
        choices=SIZES,
        default="small",
        help="size of the model: small has 6 layers, 6M parameters, a context of 256 "
        "and 4,096 tokens; mini is chapter 4's, the others are GPT-2's sizes",
    )
    add(
        "--vocab-size",
        type=int,
        default=argparse.SUPPRESS,
        help="tokens to learn from the text, if not as many as the size has; "
        "50,257 stands for GPT-2's own",
    )
    add(
        "--context",
        type=int,
        default=argparse.SUPPRESS,
        help="tokens in a window, if not the size's",
    )
    add("--steps", type=int, default=1000, help="steps of the optimizer")
    add(
        "--batch-size",
        type=int,
        default=16,
        help="windows in a step, all processes together",
    )
    add(
        "--accumulate",
        type=int,
        default=1,
        help="parts in which a step's windows are computed, to save memory",
    )
    add("--learning-rate", type=float, default=2e-3, help="its highest value")
    add(
        "--warmup",
        type=int,
        default=argparse.SUPPRESS,
        help="steps until it is reached (default: a tenth of the steps, at most 50)",
    )
    add(
        "--adamw",
        action="store_true",
        help="AdamW for everything, not Muon for matrices",
    )
    add(
        "--bfloat16", action="store_true", help="mixed precision; for GPUs that have it"
    )
    add(
        "--compile",
        action="store_true",
        help="torch.compile: a slow start, then faster",
    )
    add(
        "--log-every",
        type=int,
        default=10,
        metavar="N",
        help="a log line every N steps",
    )
    add(
        "--eval-every",
        type=int,
        default=200,
        metavar="N",
        help="validation every N steps",
    )
    add(
        "--checkpoint-every",
        type=int,
        default=200,
        metavar="N",
        help="one every N steps",
    )
    add("--keep", type=int, default=2, metavar="K", help="checkpoints to keep")
    add("--seed", type=int, default=123, help="of weights and data")
    optional = argparse.Namespace(
        **dict.fromkeys(("text", "tales", "vocab_size", "context", "warmup"))
    )
    args = parser.parse_args(argv, optional)
    settings_file = args.out / "settings.json"
    if args.resume:
        if not settings_file.exists():
            parser.error(f"nothing to resume: {settings_file} does not exist")
        stored = json.loads(settings_file.read_text(encoding="utf-8"))
        stored["text"] = (
            [Path(name) for name in stored["text"]] if stored["text"] else None
        )
        blank = argparse.Namespace(**dict.fromkeys(vars(args)))  # keeps defaults out
        given = {
            k: v
            for k, v in vars(parser.parse_args(argv, blank)).items()
            if v is not None
        }
        free = {"out", "resume", "steps", "learning_rate", "keep"}
        if fixed := [k for k, v in given.items() if k not in free and v != stored[k]]:
            parser.error(
                f"a resumed run keeps its settings; leave out {options(fixed)}"
            )
        changed = {k: v for k, v in given.items() if k in free}
        args = argparse.Namespace(
            **stored | changed | {"out": args.out, "resume": True}
        )
    elif (args.text is None) == (args.tales is None):
        parser.error("give either --text or --tales")
    elif checkpoints(args.out):
        parser.error(
            f"{args.out} holds a run already: add --resume, or choose another --out"
        )
    if missing := [
        str(path) for path in args.text or [] if not (path.is_file() or args.resume)
    ]:
        parser.error(f"--text: no such file: {', '.join(missing)}")
    whole = {
        k: v
        for k, v in vars(args).items()
        if type(v) is int and k not in ("seed", "warmup")
    }
    if low := [name for name, value in whole.items() if value < 1]:
        parser.error(f"must be at least 1: {options(low)}")
    parts = int(os.environ.get("WORLD_SIZE", 1)) * args.accumulate
    if args.batch_size % parts:
        parser.error(
            f"--batch-size {args.batch_size} is not divisible by {parts} parts"
        )
    return args


def options(names: list[str]) -> str:
    """Return the names of settings as they are written on the command line."""
    return ", ".join("--" + name.replace("_", "-") for name in names)


# --- data -----------------------------------------------------------------------------


def read_text(path: Path) -> Iterator[str]:
    """Yield a file in pieces; ValueError with the byte offset where it is not UTF-8."""
    decoded_up_to, rest = 0, b""
    with path.open("rb") as file:
        while True:
            piece = file.read(CHUNK)
            data = rest + piece
            try:
                text, rest = data.decode("utf-8"), b""
            except UnicodeDecodeError as error:
                cut_short = (
                    piece and error.end == len(data) and len(data) - error.start < 4
                )
                if not cut_short:
                    at = decoded_up_to + error.start
                    raise ValueError(
                        f"{path} is not UTF-8: {error.reason} at byte {at:,}"
                    ) from None
                text, rest = data[: error.start].decode("utf-8"), data[error.start :]
            decoded_up_to += len(data) - len(rest)
            if text:
                yield text
            if not piece:
                return


def documents(args: argparse.Namespace) -> Iterator[Iterator[str]]:
    """Yield every document as an iterator over its pieces."""
    if args.tales:
        for tale in tales(args.seed, args.tales):
            yield iter([tale.text])
    else:
        for path in args.text:
            yield read_text(path)


def make_tokenizer(args: argparse.Namespace, vocab_size: int) -> BPETokenizer:
    """Return GPT-2's tokenizer, or one trained on the first 10 MB of the text."""
    if vocab_size == GPTConfig().vocab_size:
        return BPETokenizer.from_gpt2_files()
    sample, size = [], 0
    texts = (itertools.chain(document, ["\n"]) for document in documents(args))
    for piece in itertools.chain.from_iterable(texts):
        sample.append(piece)
        size += len(piece)
        if size > 10_000_000:
            break
    return BPETokenizer.train("".join(sample), vocab_size, [END_OF_TEXT])


def prepare_data(args: argparse.Namespace, vocab_size: int, context: int) -> None:
    """Tokenise all text into OUT/data; its last 1/20, at most 1M, is for validation."""
    folder, done = args.out / "data", args.out / "data" / "data.json"
    if done.exists() and args.resume:
        return
    source = [vocab_size, args.tales, args.seed]
    source += [[str(path.resolve()), path.stat().st_size] for path in args.text or []]
    if (
        done.exists()
        and json.loads(done.read_text(encoding="utf-8"))["source"] == source
    ):
        return
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(args, vocab_size)
    if tokenizer.n_vocab > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.n_vocab} tokens, the model {vocab_size}"
        )
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    count = 0
    with (
        (folder / "all.bin").open("wb") as file,
        tqdm(unit=" tokens", desc="tokenising") as bar,
    ):
        for document in documents(args):
            stream = tokenizer.encode_iterable(document, disallowed_special=())
            stream = itertools.chain(stream, [tokenizer.eot_token])
            while ids := list(itertools.islice(stream, 1_000_000)):
                np.asarray(ids, dtype=dtype).tofile(file)
                count += len(ids)
                bar.update(len(ids))
    n_val = min(max(count // 20, context + 1), 1_000_000)
    if count < 2 * n_val:
        raise ValueError(f"too little text: {count} tokens for windows of {context}")
    tokenizer.save(folder / "tokenizer.json")
    facts = {
        "tokens": count,
        "validation": n_val,
        "dtype": np.dtype(dtype).name,
        "source": source,
    }
    done.write_text(json.dumps(facts), encoding="utf-8")


class Windows:
    """Random windows of a memory-mapped token file, a function of their number."""

    def __init__(self, args: argparse.Namespace, context: int, rank: int, world: int):
        folder = args.out / "data"
        facts = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        ids = np.memmap(folder / "all.bin", dtype=facts["dtype"], mode="r")
        cut = facts["tokens"] - facts["validation"]
        self.train, self.val = ids[:cut], ids[cut:]
        self.context, self.seed, self.device = context, args.seed, args.device
        self.rank, self.accumulate = rank, args.accumulate
        self.rows = args.batch_size // (world * args.accumulate)
        self.batch_size, self.stop = args.batch_size, False

    def __call__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this process's part number i: inputs and targets (rows, T)."""
        step, part = divmod(i, self.accumulate)
        if part == 0 and self.shall_stop():
            raise Stop
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        last = len(self.train) - self.context
        starts = torch.randint(last, (self.batch_size,), generator=generator).tolist()
        first = (self.rank * self.accumulate + part) * self.rows
        return self.batch(self.train, starts[first : first + self.rows])

    def shall_stop(self) -> bool:
        """Say whether any process was told to stop, so that all stop together."""
        if not dist.is_initialized():
            return self.stop
        flag = torch.tensor(float(self.stop), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def batch(
        self, ids: np.ndarray, starts: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the windows of `ids` at `starts` as int64 tensors on the device."""
        rows = np.stack(
            [ids[start : start + self.context + 1] for start in starts]
        ).astype(np.int64)
        tokens = torch.from_numpy(rows).to(self.device)
        return tokens[:, :-1], tokens[:, 1:]

    def validation(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return up to 320 windows of the validation part, in batches, no overlaps."""
        starts = list(range(0, len(self.val) - self.context, self.context))[:320]
        return [
            self.batch(self.val, starts[i : i + 16]) for i in range(0, len(starts), 16)
        ]


# --- checkpoints ----------------------------------------------------------------------


def checkpoints(out: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted((out / "checkpoints").glob("step-*"))


def store(trainer: Trainer, args: argparse.Namespace) -> None:
    """Write a checkpoint, then delete all but the last --keep."""
    save_checkpoint(trainer, args.out / "checkpoints" / f"step-{trainer.step:08d}")
    for old in checkpoints(args.out)[: -args.keep]:
        shutil.rmtree(old, ignore_errors=True)


def load_last(trainer: Trainer, args: argparse.Namespace) -> None:
    """Load the newest checkpoint that is whole."""
    problems = []
    for folder in reversed(checkpoints(args.out)):
        try:
            load_checkpoint(trainer, folder)
            break
        except ValueError as error:
            problems.append(str(error))
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if problems and trainer.step == 0:
        raise ValueError("no checkpoint can be used; see the warnings above")


def clear_up(out: Path, step: int) -> None:
    """Remove what a killed run left half written or logged after its checkpoint."""
    for leftover in (out / "checkpoints").glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if (log := out / "log.jsonl").exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("}\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        log.write_text("".join(kept), encoding="utf-8")


# --- the run --------------------------------------------------------------------------


def run(args: argparse.Namespace, rank: int, world: int) -> None:
    """Train as the arguments say; on process `rank` of `world`."""
    size = SIZES[args.config]
    config = replace(
        size,
        vocab_size=args.vocab_size or size.vocab_size,
        context_length=args.context or size.context_length,
    )
    training = TrainConfig(
        args.steps,
        args.learning_rate,
        muon=not args.adamw,
        warmup_steps=min(50, args.steps // 10) if args.warmup is None else args.warmup,
        accumulate=args.accumulate,
        bfloat16=args.bfloat16,
        seed=args.seed,
    )
    chief = rank == 0
    if chief:
        prepare_data(args, config.vocab_size, config.context_length)
    if world > 1:
        dist.barrier()
    tokenizer = BPETokenizer.load(args.out / "data" / "tokenizer.json")
    # a short text has fewer tokens
    config = replace(config, vocab_size=tokenizer.n_vocab)
    windows = Windows(args, config.context_length, rank, world)
    torch.manual_seed(args.seed)
    model = GPTModel(config).to(args.device)
    replica = DistributedDataParallel(model) if world > 1 else model
    if args.compile:
        replica = torch.compile(replica)
    trainer = Trainer(model, training, replica)
    if args.resume:
        load_last(trainer, args)
    if chief:
        if args.resume:
            clear_up(args.out, trainer.step)
        settings = {
            k: v for k, v in vars(args).items() if k not in ("out", "resume", "device")
        }
        settings["text"] = (
            [str(path.resolve()) for path in args.text] if args.text else None
        )
        (args.out / "settings.json").write_text(
            json.dumps(settings, indent=1), encoding="utf-8"
        )
        print(
            f"{count_parameters(model):,} parameters, "
            f"a vocabulary of {config.vocab_size:,}, "
            f"{len(windows.train):,} tokens to train on, "
            f"{world} process(es) on {args.device}, from step {trainer.step}"
        )

    def ask_to_stop(number: int, frame) -> None:
        """Let the step be finished; asked a second time, stop at once."""
        windows.stop = True
        signal.signal(number, signal.SIG_DFL)
        print(
            "\nfinishing this step, then saving (once more: stop at once)", flush=True
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    val_batches = windows.validation()
    log_file = (args.out / "log.jsonl").open("a", encoding="utf-8") if chief else None

    def after_step(trainer: Trainer, record: dict) -> None:
        """Log, evaluate, and store a checkpoint, each when it is due."""
        if not chief:
            return
        step, at_end = trainer.step, trainer.step == args.steps
        record["learning_rate"] = learning_rate_at(step - 1, training)
        if at_end or step % args.eval_every == 0:
            with torch.autocast(
                args.device.type, torch.bfloat16, enabled=args.bfloat16
            ):
                record["val_loss"] = evaluate(model, val_batches)
        if at_end or step % args.log_every == 0 or "val_loss" in record:
            print(json.dumps(record), file=log_file, flush=True)
        if at_end or step % args.checkpoint_every == 0:
            store(trainer, args)

    try:
        train_model(
            model,
            windows,
            training,
            trainer=trainer,
            on_step=after_step,
            progress=chief,
        )
    except Stop:
        if chief:
            store(trainer, args)
            save_model(model, args.out / "model", tokenizer)
            print(
                f"stopped at step {trainer.step}; "
                f"to go on, give --out {args.out} --resume"
            )
        return
    if chief:
        save_model(model, args.out / "model", tokenizer)
        print(
            f"step {trainer.step} of {args.steps} is done; "
            f"the model is in {args.out / 'model'}"
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = arguments(argv)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    args.device = get_device()
    if args.device.type == "cuda":
        args.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(args.device)
        torch.set_float32_matmul_precision("high")
    if world > 1:
        backend = "nccl" if args.device.type == "cuda" else "gloo"
        # Tokenising may take hours
        dist.init_process_group(backend, timeout=timedelta(hours=12))
    try:
        run(args, rank, world)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if world > 1:
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
