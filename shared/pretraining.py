"""A loop that trains a language model: first in ten lines, then as it is used for real.
With it you train a model that tells stories of its own, close to the best loss that
anybody could reach on them.

Generated from ch05_pretraining/ch05_pretraining.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from shared.gpt_model import Decoder, DecoderConfig, GPTConfig, GPTModel
from shared.llama_model import LlamaConfig, LlamaModel
from shared.support import files, read_json, require_whole
from shared.support.modules import evaluating, mode, precise
from shared.text_data import Tokenizer
from shared.tokenizer import BPETokenizer

__all__ = [
    "Muon", "IGNORE", "next_token_loss", "evaluate", "TrainConfig", "Trainer",
    "train", "mean_loss", "sample_next", "stream", "generate", "story_batch",
    "save_model", "model_with", "load_model",
]  # fmt: skip


# Section 5.4: Optimizers and care: AdamW, Muon, schedule, clipping, accumulation
def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Return about the nearest orthogonal matrix: (M, N) -> (M, N), in float32.

    Five Newton-Schulz steps with the coefficients of Jordan et al. (2024) bring all
    singular values near 1.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float().T if tall else matrix.float()  # at most as many rows as columns
    x = x / x.norm().clamp(min=1e-7)  # no singular value above 1
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) for matrices, its step as large as one of AdamW.

    The same as torch.optim.Muon with adjust_lr_fn="match_rms_adamw", but in float32.
    """

    def __init__(
        self, params, lr: float, weight_decay: float = 0.1, momentum: float = 0.95
    ):
        settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        """Change every matrix that has a gradient; `closure` is not used."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["mean"] = torch.zeros_like(p)
                mean = self.state[p]["mean"].lerp_(p.grad, 1 - momentum)
                ahead = p.grad.lerp(mean, momentum)  # Nesterov: the mean of one step on
                p.mul_(1 - rate * group["weight_decay"])
                size = 0.2 * math.sqrt(max(p.shape))
                p.sub_(orthogonalise(ahead), alpha=rate * size)


IGNORE = -100  # a target that does not count, F.cross_entropy's own convention


def next_token_loss(
    model: nn.Module, token_ids: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Return the summed cross-entropy in nats of targets (B, T), and how many count.

    Targets equal to IGNORE do not count; our own models compute no logits (N, V) for
    them. Summed in float32 at least, whatever the model's type.
    """
    counts = targets != IGNORE  # (B, T)
    if isinstance(model, Decoder):
        logits = model.out_head(model.hidden_states(token_ids)[counts])
    else:  # compiled, or shared by several processes
        logits = model(token_ids)[counts]
    total = F.cross_entropy(precise(logits), targets[counts], reduction="sum")
    return total, int(counts.sum())


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple], loss: Callable = next_token_loss
) -> float:
    """Return the mean loss over all that counts in the batches, in evaluation mode.

    `batches` may be on any device; `loss` is as in Trainer. Raises ValueError if there
    is nothing to evaluate.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with evaluating(model):
        for batch in batches:
            batch_total, batch_count = loss(model, *(part.to(device) for part in batch))
            total += batch_total.item()
            count += batch_count
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
    final_share: float = 0.1  # of the peak, when the schedule ends
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    accumulate: int = 1  # batches for one step
    bfloat16: bool = False  # products in half the bits; for hardware that has them

    def __post_init__(self):
        counts = (self.max_steps, self.accumulate, self.warmup_steps)
        whole = all(type(n) is int for n in counts) and min(counts[:2]) >= 1
        warm = 0 <= self.warmup_steps <= self.max_steps
        shares = 0 < self.learning_rate < 1 and 0 <= self.final_share <= 1
        limits = self.weight_decay >= 0 and self.max_grad_norm > 0
        if not (whole and warm and shares and limits):
            raise ValueError(f"a setting is no whole number, or out of range: {self}")


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Return the learning rate of step 0, 1, ...: linear warm-up, half a cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    falling = max(1, config.max_steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / falling)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    share = config.final_share + (1 - config.final_share) * cosine
    return config.learning_rate * share


def make_optimizers(
    model: nn.Module, config: TrainConfig
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together train every weight that requires a gradient.

    AdamW, with weight decay on matrices only; with config.muon, Muon for the matrices
    of model.blocks, its step scaled to the size of AdamW's.
    """
    rest = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not rest:
        raise ValueError("the model has no weights that are trained: all are frozen")
    matrices = [n for n, p in rest.items() if ".blocks." in f".{n}" and p.ndim == 2]
    for_muon = [rest.pop(name) for name in matrices] if config.muon else []
    rate = config.learning_rate
    decay = config.weight_decay
    optimizers: list[torch.optim.Optimizer] = []
    if for_muon:
        optimizers.append(Muon(for_muon, rate, decay))
    if rest:
        decayed = {"params": [p for p in rest.values() if p.ndim >= 2]}
        others = {"params": [p for p in rest.values() if p.ndim < 2]}
        groups = [decayed | {"weight_decay": decay}, others | {"weight_decay": 0.0}]
        adamw = torch.optim.AdamW(groups, rate, betas=(0.9, 0.95), fused=True)
        optimizers.append(adamw)
    return optimizers


class Trainer:
    """A model in training: one call of train_step is one step of its optimizers.

    `loss(model, *batch)` returns a sum and how much counts in it: tokens, messages or
    pairs, each of which then counts the same, in whatever batch it stands. Raises
    ValueError for a model that is frozen as a whole.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, loss: Callable = next_token_loss
    ):
        self.model = model
        self.config = config
        self.loss = loss
        self.optimizers = make_optimizers(model, config)
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.device = self.weights[0].device
        self.step = 0
        self.tokens = 0  # what has counted so far

    def add_gradients(self, batches: list[tuple]) -> tuple[float, float]:
        """Add up the gradients of summed losses; return their sum and what counts."""
        kind, mixed = self.device.type, self.config.bfloat16
        total, count = torch.zeros((), device=self.device), 0
        for batch in batches:
            batch = tuple(part.to(self.device) for part in batch)
            with torch.autocast(kind, torch.bfloat16, enabled=mixed):
                batch_total, batch_count = self.loss(self.model, *batch)
            batch_total.backward()
            total += batch_total.detach()
            count += batch_count
        return total.item(), count

    def train_step(self, batches: list[tuple]) -> float:
        """Train on one or more batches; return the mean loss of what counts in them.

        Raises FloatingPointError, and leaves the weights as they are, if the loss or
        the gradient is not a finite number; ValueError if nothing counts.
        """
        self.model.zero_grad(set_to_none=True)
        total, count = self.add_gradients(batches)
        if not count:
            raise ValueError(f"nothing counts in the batches of step {self.step}")
        for p in self.weights:
            if p.grad is not None:
                p.grad /= count  # of the sum -> of the mean
        norm = nn.utils.clip_grad_norm_(self.weights, self.config.max_grad_norm)
        loss = total / count
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FloatingPointError(
                f"step {self.step}: loss {loss}, gradient {norm}; nothing was changed; "
                "go back to a checkpoint with a smaller learning rate"
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(self.step, self.config)
            optimizer.step()
        self.step += 1
        self.tokens += int(count)
        return loss


def train(
    trainer: Trainer, batches: Iterable[tuple], *, progress: bool = True
) -> Iterator[dict]:
    """Train up to config.max_steps; yield a record after every step.

    `batches` gives what the loss takes, on any device, from the trainer's own step on;
    config.accumulate of them make a step, and training ends early when they run out. A
    record has step, tokens (so far; or whatever else the loss counts), step_tokens (of
    this step), loss (per token), learning_rate, and seconds (spent in training so far).
    Between two records the caller may evaluate, save, or stop; the model is in training
    mode during the steps only.
    """
    batches = iter(batches)
    seconds = 0.0
    n_steps = trainer.config.max_steps
    with tqdm(total=n_steps, disable=not progress, file=sys.stdout) as bar:
        while trainer.step < n_steps:
            start = time.perf_counter()
            some = list(islice(batches, trainer.config.accumulate))
            if not some:
                return
            tokens_before = trainer.tokens
            with mode(trainer.model, training=True):
                loss = trainer.train_step(some)
            seconds += time.perf_counter() - start
            bar.set_postfix(loss=loss, refresh=False)
            bar.update(trainer.step - bar.n)
            yield {
                "step": trainer.step,
                "tokens": trainer.tokens,
                "step_tokens": trainer.tokens - tokens_before,
                "loss": loss,
                "learning_rate": learning_rate_at(trainer.step - 1, trainer.config),
                "seconds": seconds,
            }


def mean_loss(records: Sequence[dict]) -> float:
    """Return the mean loss of all that counted in the steps of these records."""
    total = sum(record["loss"] * record["step_tokens"] for record in records)
    return total / sum(record["step_tokens"] for record in records)


# Section 5.5: Sampling: temperature, top-k and top-p
def sample_next(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Choose a token for each row of logits (B, V); return ids (B,).

    A temperature of 0 takes the likeliest, one of infinity any that is left. `top_k`
    and then `top_p` cut off the tail, None does not. Raises ValueError for a negative
    temperature, a top_k below 1 or a top_p outside (0, 1].
    """
    k_fits = top_k is None or (isinstance(top_k, int) and top_k >= 1)
    p_fits = top_p is None or 0 < top_p <= 1
    if not (temperature >= 0 and k_fits and p_fits):
        raise ValueError(
            f"out of range: temperature {temperature}, top_k {top_k}, top_p {top_p}"
        )
    if temperature == 0:
        return logits.argmax(dim=-1)
    # The largest becomes 0, so that nothing overflows at a temperature near 0; float32
    # has no 1e-46, and a division by infinity would make all logits 0.
    logits = logits.float() - logits.amax(dim=-1, keepdim=True)
    logits = logits / min(max(temperature, 1e-30), 1e30)
    if top_k is not None:
        # topk gives exactly k, also among equals.
        best, index = logits.topk(min(top_k, logits.shape[-1]))
        logits = torch.full_like(logits, -torch.inf).scatter(1, index, best)
    if top_p is not None:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        # The mass from each token on, summed from the end, where it is exact: what
        # comes before has reached top_p when no more than 1 - top_p is left.
        left = ordered.softmax(dim=-1).flip(-1).cumsum(dim=-1).flip(-1)
        cut = left <= (1 - top_p) * (1 + 1e-6)  # up to rounding
        cut[:, 0] = False
        logits = logits.masked_fill(cut.scatter(1, order, cut), -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


@torch.no_grad()
def stream(
    model: Decoder,
    token_ids: torch.Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
    generator: torch.Generator | None = None,
    pad_left: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Continue each row of token_ids (B, T); yield the ids (B,) of every new step.

    Temperature 0 is greedy; the rest is that of sample_next. A row that has produced
    `stop_token` goes on with it; generation ends when all rows have, after
    max_new_tokens, or when the text fills the model's context. Of a prompt that
    leaves no room in it, the last tokens are kept, half a context or more, with a
    warning. `pad_left` (B,) int64: how many padding tokens each row starts with.
    Raises ValueError for another shape, a row of padding only, or a negative number.
    """
    require_whole(0, max_new_tokens=max_new_tokens)
    if token_ids.ndim != 2:
        raise ValueError(f"token ids must be (B, T), got {tuple(token_ids.shape)}")
    n_prompt, context = token_ids.shape[1], model.config.context_length
    if pad_left is not None and not pad_left.equal(pad_left.clamp(0, n_prompt - 1)):
        raise ValueError(f"pad_left is {pad_left.tolist()}, not 0 to {n_prompt - 1}")
    if n_prompt > context - min(max_new_tokens, 1):
        kept = max((context + 1) // 2, context - max_new_tokens)
        warnings.warn(
            f"the prompt has {n_prompt} tokens, the context {context}: "
            f"only the last {kept} are read",
            stacklevel=3,
        )
        token_ids = token_ids[:, -kept:]
        pad_left = None if pad_left is None else (pad_left + kept - n_prompt).clamp(0)
    batch_size, n_tokens = token_ids.shape
    end = min(n_tokens + max_new_tokens, context)
    cache = model.new_cache(batch_size, end, pad_left)
    stopped = torch.zeros(batch_size, dtype=torch.bool, device=token_ids.device)
    with evaluating(model):
        for _ in range(end - n_tokens):
            hidden = model.hidden_states(token_ids, cache)
            logits = model.out_head(hidden[:, -1])  # (B, V)
            ids = sample_next(logits, temperature, top_k, top_p, generator)  # (B,)
            if stop_token is not None:
                ids = ids.masked_fill(stopped, stop_token)
                stopped |= ids == stop_token
            yield ids
            if stopped.all():
                return
            token_ids = ids[:, None]  # all that the cache has not seen yet


def generate(
    model: Decoder, token_ids: torch.Tensor, max_new_tokens: int, **sampling
) -> torch.Tensor:
    """Return token_ids (B, T) with what `stream` continues them by: (B, T + new)."""
    new = [ids[:, None] for ids in stream(model, token_ids, max_new_tokens, **sampling)]
    return torch.cat([token_ids, *new], dim=1)


# Section 5.6: Pretraining to the entropy floor: how good can a model get?
def story_batch(
    texts: list[str], tokenizer: Tokenizer, context_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and targets (B, T) int64, a text in each row.

    A row starts with the end-of-text token, and its last target is one. Shorter rows
    are filled up on the right, where targets are IGNORE. Raises ValueError for a text
    that does not fit the context.
    """
    end = tokenizer.eot_token
    rows = [[end, *tokenizer.encode_ordinary(text), end] for text in texts]
    longest = max(len(row) for row in rows) - 1
    if longest > context_length:
        raise ValueError(
            f"a text of {longest} tokens is longer than the context of {context_length}"
        )
    ids = pad_sequence([torch.tensor(row) for row in rows], True, IGNORE)
    token_ids, targets = ids[:, :-1], ids[:, 1:]
    return token_ids.masked_fill(token_ids == IGNORE, end), targets


# Section 5.7: Saving and resuming: safetensors and checkpoints
KINDS = {"GPTModel": (GPTModel, GPTConfig), "LlamaModel": (LlamaModel, LlamaConfig)}


def save_model(model: Decoder, folder: str | Path, tokenizer: BPETokenizer) -> None:
    """Write a model and its tokenizer to a folder, as a whole or not at all.

    The folder holds model.safetensors, config.json and tokenizer.json. Raises
    ValueError or TypeError for a model that load_model could not load: one with
    adapters, say.
    """
    files.require_plain(model)

    def write(new: Path) -> None:
        save_file(files.weights_of(model), new / "model.safetensors")
        settings = {"kind": type(model).__name__} | asdict(model.config)
        (new / "config.json").write_text(json.dumps(settings, indent=1), "utf-8")
        tokenizer.save(new / "tokenizer.json")

    files.write_folder(folder, write)


def model_with(model_class: type, config: DecoderConfig, weights: dict) -> Decoder:
    """Return a model made of the weights; ValueError lists what does not fit."""
    with torch.device("meta"):
        model = model_class(config)
    files.set_weights(model, weights, assign=True)
    return model.eval()


def load_model(folder: str | Path) -> tuple[Decoder, BPETokenizer]:
    """Return the model, in evaluation mode, and the tokenizer that save_model wrote.

    Raises FileNotFoundError for a missing file and ValueError for one that cannot be
    used; both name its path.
    """
    folder = Path(folder)
    settings = read_json(folder / "config.json")
    weights = files.read_tensors(folder / "model.safetensors")
    try:
        model_class, config_class = KINDS[settings.pop("kind")]
        model = model_with(model_class, config_class(**settings), weights)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} holds no model of this course: {error}") from error
    return model, BPETokenizer.load(folder / "tokenizer.json")
