"""A training loop that is used for real, and a model that learns to tell stories, close
to the best loss that anybody could reach on them.

Generated from ch05_pretraining/ch05_pretraining.ipynb by `python -m shared.export`;
edit the notebook, not this file.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from shared.fetch import verify
from shared.gpt_model import Decoder, GPTConfig, GPTModel
from shared.llama_model import LlamaConfig, LlamaModel
from shared.text_data import BPETokenizer, Tokenizer

__all__ = [
    "IGNORE", "summed_loss", "count_targets", "evaluate", "TrainConfig",
    "learning_rate_at", "make_optimizers", "Trainer", "train_model", "sample_next",
    "generate", "story_batch", "write_folder", "weights_of", "set_weights", "KINDS",
    "save_model", "load_model", "described", "save_checkpoint", "load_checkpoint",
]  # fmt: skip

IGNORE = -100  # a target that does not count, F.cross_entropy's own convention


def summed_loss(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return the sum of the cross-entropies in nats, for inputs and targets (B, T).

    Targets equal to IGNORE do not count; our own models compute no logits (N, V) for
    them.
    """
    counts = targets != IGNORE
    if isinstance(model, Decoder):
        logits = model.out_head(model.hidden_states(inputs)[counts])
    else:  # compiled, or shared by several processes
        logits = model(inputs)[counts]
    return F.cross_entropy(logits, targets[counts], reduction="sum")


def count_targets(targets: torch.Tensor) -> int:
    """Return how many targets count."""
    return int((targets != IGNORE).sum())


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> float:
    """Return the mean cross-entropy per token of all batches, in nats, in eval mode.

    Raises ValueError if there is nothing to evaluate.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for inputs, targets in batches:
        total += summed_loss(model, inputs, targets).item()
        count += count_targets(targets)
    model.train(was_training)
    if not count:
        raise ValueError("there are no targets to evaluate")
    return total / count


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises ValueError for a setting out of range."""

    max_steps: int
    learning_rate: float = 1e-3  # the peak
    muon: bool = False  # for the matrices in the blocks; AdamW for the rest
    warmup_steps: int = 0
    final_share: float = 0.1  # of the peak, at the last step
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    accumulate: int = 1  # batches for one step
    bfloat16: bool = False  # mixed precision
    seed: int = 123

    def __post_init__(self):
        in_range = {
            "max_steps": self.max_steps >= 1, "accumulate": self.accumulate >= 1,
            "warmup_steps": 0 <= self.warmup_steps <= self.max_steps,
            "learning_rate": 0 < self.learning_rate < 1,
            "final_share": 0 <= self.final_share <= 1,
            "weight_decay": self.weight_decay >= 0,
            "max_grad_norm": self.max_grad_norm > 0,
        }  # fmt: skip
        if wrong := [
            f"{name} = {getattr(self, name)}" for name, ok in in_range.items() if not ok
        ]:
            raise ValueError(f"out of range: {', '.join(wrong)}")


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Return the learning rate of step 0, 1, ...: linear warm-up, half a cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(
        1, config.max_steps - 1 - config.warmup_steps
    )
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (
        config.final_share + (1 - config.final_share) * cosine
    )


def make_optimizers(
    model: nn.Module, config: TrainConfig
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together train every weight that requires a gradient.

    AdamW, with weight decay on matrices only; with config.muon, Muon for the matrices
    of model.blocks, its step scaled to the size of AdamW's.
    """
    rest = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [
        name for name, p in rest.items() if ".blocks." in f".{name}" and p.ndim == 2
    ]
    for_muon = [rest.pop(name) for name in matrices] if config.muon else []
    rate = config.learning_rate
    decay = {"weight_decay": config.weight_decay}
    optimizers = []
    if for_muon:
        optimizers.append(
            torch.optim.Muon(for_muon, rate, **decay, adjust_lr_fn="match_rms_adamw")
        )
    if rest:
        groups = [
            {"params": [p for p in rest.values() if p.ndim >= 2]} | decay,
            {"params": [p for p in rest.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizers.append(
            torch.optim.AdamW(groups, rate, betas=(0.9, 0.95), fused=True)
        )
    return optimizers


class Trainer:
    """A model in training: one call of train_step is one step of its optimizers.

    `replica` is the model as it shall be called, where that differs: compiled, or
    wrapped in DistributedDataParallel. Then every token counts the same, whichever
    process has it.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, replica: nn.Module | None = None
    ):
        self.model, self.config = model, config
        self.replica = model if replica is None else replica
        self.optimizers = make_optimizers(model, config)
        self.step = self.tokens = 0

    def train_step(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        """Train on batches of inputs and targets (B, T); return the loss per token.

        Raises FloatingPointError, and leaves the weights as they are, if the loss or
        the gradient is not a finite number; ValueError if no target counts.
        """
        device = batches[0][0].device
        world = dist.get_world_size() if dist.is_initialized() else 1
        own_targets = sum(count_targets(targets) for _, targets in batches)
        count = torch.tensor(own_targets, device=device)
        if world > 1:
            dist.all_reduce(count)
        n_targets = int(count)  # of all processes
        if not n_targets:
            raise ValueError(f"no target counts in the batches of step {self.step}")
        self.model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        no_sync = getattr(self.replica, "no_sync", nullcontext)
        mixed = self.config.bfloat16
        for n, (inputs, targets) in enumerate(batches, start=1):
            # Several processes exchange gradients once a step, with the last batch.
            wait = nullcontext if n == len(batches) else no_sync
            with wait(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                loss = summed_loss(self.replica, inputs, targets) / n_targets
                (loss * world).backward()  # DistributedDataParallel divides by world
            total += loss.detach()
        if world > 1:
            dist.all_reduce(total)
        most = self.config.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), most)
        loss = float(total)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FloatingPointError(
                f"step {self.step}: loss {loss}, gradient {norm}; nothing was changed; "
                "go back to a checkpoint with a smaller learning rate"
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(self.step, self.config)
            optimizer.step()
        self.step, self.tokens = self.step + 1, self.tokens + n_targets
        return loss


def train_model(
    model: nn.Module,
    get_batch: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    config: TrainConfig,
    *,
    val_batches: Iterable[tuple[torch.Tensor, torch.Tensor]] = (),
    eval_every: int = 0,
    on_eval: Callable[[Trainer, dict], None] = lambda trainer, record: None,
    on_step: Callable[[Trainer, dict], None] = lambda trainer, record: None,
    trainer: Trainer | None = None,
    progress: bool = True,
) -> list[dict]:
    """Train a model up to config.max_steps; return a record for every evaluation.

    `get_batch(i)` returns inputs and targets (B, T) number i, on the model's device.
    Every `eval_every` steps and at the end, a record (step, tokens, seconds,
    tokens_per_second, train_loss, val_loss; losses in nats per token) is made and
    handed to `on_eval`; `on_step` gets one (step, tokens, seconds, loss) after every
    step. `trainer` continues one of this model and config, loaded from a checkpoint;
    without it, config.seed is set.
    """
    if trainer is None:
        torch.manual_seed(config.seed)
        trainer = Trainer(model, config)
    elif trainer.model is not model or trainer.config != config:
        raise ValueError("the trainer belongs to another model or configuration")
    val_batches, history, losses = list(val_batches), [], []
    seconds, tokens_before = 0.0, trainer.tokens
    model.train()
    shown = {"disable": not progress, "file": sys.stdout}
    with tqdm(total=config.max_steps, initial=trainer.step, **shown) as bar:
        while trainer.step < config.max_steps:
            start, first = time.perf_counter(), trainer.step * config.accumulate
            batches = [get_batch(first + n) for n in range(config.accumulate)]
            losses.append(trainer.train_step(batches))
            seconds += time.perf_counter() - start
            bar.set_postfix(loss=losses[-1], refresh=False)
            bar.update()
            so_far = {"step": trainer.step, "tokens": trainer.tokens}
            so_far["seconds"] = seconds
            on_step(trainer, so_far | {"loss": losses[-1]})
            at_end = trainer.step == config.max_steps
            if at_end or (eval_every and trainer.step % eval_every == 0):
                speed = (trainer.tokens - tokens_before) / seconds
                record = so_far | {"tokens_per_second": speed}
                record["train_loss"] = sum(losses) / len(losses)
                record["val_loss"] = (
                    evaluate(model, val_batches) if val_batches else math.nan
                )
                history.append(record)
                losses = []
                on_eval(trainer, record)
    return history


def sample_next(
    logits: torch.Tensor, temperature=1.0, top_k=None, top_p=None, generator=None
):
    """Choose a token for each row of logits (B, V); return ids (B,).

    A temperature of 0 takes the likeliest. `top_k` (int) and `top_p` (float) cut off
    the tail, None does not; `generator` is a torch.Generator. Raises ValueError for a
    negative temperature, a top_k below 1 or a top_p outside (0, 1].
    """
    in_range = [
        temperature >= 0,
        top_k is None or top_k >= 1,
        top_p is None or 0 < top_p <= 1,
    ]
    if not all(in_range):
        raise ValueError(
            f"out of range: temperature {temperature}, top_k {top_k}, top_p {top_p}"
        )
    if temperature == 0:
        return logits.argmax(dim=-1)
    # The largest becomes 0, so that nothing overflows at a temperature near 0.
    logits = (logits.float() - logits.amax(dim=-1, keepdim=True)) / temperature
    if top_k is not None:
        # Exactly k of them, also among equals
        best, index = logits.topk(min(top_k, logits.shape[-1]))
        logits = torch.full_like(logits, -torch.inf).scatter(1, index, best)
    if top_p is not None:
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        # p was reached before this token
        unneeded = ordered.cumsum(dim=-1) - ordered >= top_p
        logits = logits.masked_fill(unneeded.scatter(1, order, unneeded), -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


@torch.no_grad()
def generate(
    model: Decoder,
    token_ids: torch.Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    stop_token: int | None = None,
    use_cache: bool = True,
    pad_left: torch.Tensor | None = None,
    on_token: Callable[[torch.Tensor], None] = lambda ids: None,
    **sampling,
) -> torch.Tensor:
    """Continue each row of token_ids (B, T) by up to max_new_tokens: (B, T + new).

    Temperature 0 is greedy; `sampling` can be top_k, top_p and generator, as in
    sample_next. A row that has produced `stop_token` is filled up with it; generation
    ends when all rows have, or when the text fills the model's context. `pad_left` (B,)
    int64: how many padding tokens each row starts with. `on_token` gets the ids (B,) of
    every step. Raises ValueError for a prompt longer than the context, and as
    sample_next does.
    """
    batch_size, n_tokens = token_ids.shape
    context = model.config.context_length
    if n_tokens > context:
        raise ValueError(
            f"a prompt of {n_tokens} tokens exceeds the context of {context}"
        )
    end = min(n_tokens + max_new_tokens, context)
    cache = model.new_cache(batch_size, end) if use_cache and end > n_tokens else None
    stopped = torch.zeros(batch_size, dtype=torch.bool, device=token_ids.device)
    was_training = model.training
    model.eval()
    try:
        while token_ids.shape[1] < end and not stopped.all():
            # What the model has not yet seen
            new = token_ids if cache is None else token_ids[:, cache.length :]
            hidden = model.hidden_states(new, cache, pad_left=pad_left)
            # One new id for each row: (B,)
            ids = sample_next(model.out_head(hidden[:, -1]), temperature, **sampling)
            if stop_token is not None:
                ids = ids.masked_fill(stopped, stop_token)
                stopped |= ids == stop_token
            on_token(ids)
            token_ids = torch.cat([token_ids, ids[:, None]], dim=1)
    finally:
        model.train(was_training)
    return token_ids


def story_batch(texts: list[str], tokenizer: Tokenizer, context_length: int):
    """Return inputs and targets (B, T) int64, a text in each row.

    A row starts with the end-of-text token, and its last target is one. Shorter rows
    are filled up on the right, where targets are IGNORE; longer ones are cut off at
    context_length.
    """
    end = tokenizer.eot_token
    rows = [
        torch.tensor([end, *tokenizer.encode_ordinary(text), end]) for text in texts
    ]
    rows = pad_sequence(rows, batch_first=True, padding_value=IGNORE)[
        :, : context_length + 1
    ]
    inputs, targets = rows[:, :-1], rows[:, 1:]
    return inputs.masked_fill(inputs == IGNORE, end), targets


def write_folder(folder: str | Path, write: Callable[[Path], None]) -> None:
    """Let write(new) fill a new folder, then put it in the place of `folder`.

    If anything goes wrong, the old folder stays as it was, and the new one is removed.
    Raises ValueError if the old one holds files that the new one would not.
    """
    folder = Path(folder)
    new = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")

    def clean_up() -> None:
        if old.exists() and not folder.exists():
            old.rename(folder)  # something went wrong between the two renames
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)

    clean_up()  # after a program that was killed here
    new.mkdir(parents=True)
    try:
        write(new)
        if folder.exists():
            if (
                foreign := set(os.listdir(folder))
                - set(os.listdir(new))
                - {"tokenizer.json"}
            ):
                raise ValueError(
                    f"{folder} holds other files ({', '.join(foreign)}); nothing done"
                )
            folder.rename(old)
        new.rename(folder)
    finally:
        clean_up()


def weights_of(model: Decoder) -> dict[str, torch.Tensor]:
    """Return the model's tensors by name, a tied matrix once, as tok_emb.weight."""
    return {
        name: tensor.detach().contiguous() for name, tensor in model.named_parameters()
    }


def set_weights(
    model: Decoder, weights: dict[str, torch.Tensor], *, assign: bool = False
) -> None:
    """Load what weights_of returns; ValueError lists the missing, extra or misshapen.

    The numbers are copied; with `assign`, the model takes over the tensors themselves.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in weights_of(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    misshapen = [n for n in expected if n in found and found[n] != expected[n]]
    wrong = [f"missing {n}" for n in expected if n not in found]
    wrong += [f"unknown {n}" for n in found if n not in expected]
    wrong += [f"{n} is {found[n]}, not {expected[n]}" for n in misshapen]
    if wrong:
        raise ValueError(f"the weights do not fit the model: {'; '.join(wrong)}")
    model.load_state_dict(weights, strict=False, assign=assign)
    if assign:
        model.tie()


KINDS = {"GPTModel": (GPTModel, GPTConfig), "LlamaModel": (LlamaModel, LlamaConfig)}


def save_model(
    model: Decoder, folder: str | Path, tokenizer: BPETokenizer | None = None
) -> None:
    """Write model.safetensors, config.json and perhaps tokenizer.json to a folder."""

    def write(new: Path) -> None:
        save_file(weights_of(model), new / "model.safetensors")
        settings = {"kind": type(model).__name__} | asdict(model.config)
        (new / "config.json").write_text(
            json.dumps(settings, indent=1), encoding="utf-8"
        )
        if tokenizer is not None:
            tokenizer.save(new / "tokenizer.json")

    write_folder(folder, write)


def load_model(folder: str | Path) -> Decoder:
    """Return the model that save_model wrote; ValueError names an unusable file."""
    folder = Path(folder)
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_class, config_class = KINDS[settings.pop("kind")]
        model = model_class(config_class(**settings))
        set_weights(model, load_file(folder / "model.safetensors"))
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"cannot load a model from {folder}: {error}") from error
    return model


def described(trainer: Trainer) -> dict:
    """Return what a checkpoint must agree on: all settings but the steps and sizes."""
    model = trainer.model
    free = {"max_steps", "learning_rate", "warmup_steps", "final_share"}
    settings = (
        {"kind": type(model).__name__} | asdict(model.config) | asdict(trainer.config)
    )
    return {name: value for name, value in settings.items() if name not in free}


def save_checkpoint(trainer: Trainer, folder: str | Path) -> None:
    """Write all that is needed to go on: weights, optimizers, step, random state."""
    tensors = {"random": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for n, optimizer in enumerate(trainer.optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"{n}.{i}.{name}"] = torch.as_tensor(value).contiguous()
    record = {
        "step": trainer.step,
        "tokens": trainer.tokens,
        "settings": described(trainer),
    }

    def write(new: Path) -> None:
        save_file(weights_of(trainer.model), new / "model.safetensors")
        save_file(tensors, new / "training.safetensors")
        files = sorted(new.iterdir())
        record["sha256"] = {
            file.name: sha256(file.read_bytes()).hexdigest() for file in files
        }
        (new / "checkpoint.json").write_text(
            json.dumps(record, indent=1), encoding="utf-8"
        )

    write_folder(folder, write)


def load_checkpoint(trainer: Trainer, folder: str | Path) -> None:
    """Bring a fresh trainer to the state of a checkpoint.

    Raises ValueError, and changes nothing, if a file is missing or damaged, or if the
    checkpoint belongs to another configuration; the message says which settings differ.
    """
    folder, settings = Path(folder), described(trainer)
    try:
        record = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        stored = record["settings"]
        for name, digest in record["sha256"].items():
            verify(folder / name, digest, name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder} is not a complete checkpoint or is damaged: {error}"
        ) from error
    if differ := [
        name for name, value in settings.items() if stored.get(name) != value
    ]:
        listed = "; ".join(
            f"{k} is {stored.get(k)!r}, here {settings[k]!r}" for k in differ
        )
        raise ValueError(f"{folder} belongs to another configuration: {listed}")
    set_weights(trainer.model, load_file(folder / "model.safetensors"))
    tensors = load_file(folder / "training.safetensors")
    torch.set_rng_state(tensors.pop("random"))
    cuda_state = tensors.pop("random.cuda", None)
    if cuda_state is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda_state)
    states = [optimizer.state_dict() for optimizer in trainer.optimizers]
    for name, tensor in tensors.items():
        n, i, key = name.split(".")
        states[int(n)]["state"].setdefault(int(i), {})[key] = tensor
    for optimizer, state in zip(trainer.optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    trainer.step, trainer.tokens = record["step"], record["tokens"]
