"""Your SmolLM2 in 8 bits: a third of the memory, nearly the same loss, and on most
processors a model that writes faster, through one call built from a pencil example.

Generated from ch05_pretraining/ch05_quantization.ipynb by
`python -m shared.support.export`; edit the notebook, not this file.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from shared.gpt_model import Decoder
from shared.support import require_whole
from shared.support.modules import evaluating

__all__ = [
    "quantize_absmax", "dequantize", "QuantizedLinear", "QuantizedEmbedding",
    "quantize", "size_in_bytes", "speculate",
]  # fmt: skip


# Section 5.17: Eight bits: how do you round a row of weights?
def quantize_absmax(
    x: torch.Tensor, bits: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x (..., n) as whole numbers (..., n) int8, and their scales (..., 1).

    Symmetric rounding: the largest of n becomes 2 ** (bits - 1) - 1, so that
    quantize_absmax(torch.tensor([0.5, -1.27])) is ([50, -127], [0.01]). Raises
    ValueError unless bits are 2 to 8.
    """
    if bits not in range(2, 9):
        raise ValueError(f"bits must be 2 to 8, got {bits}")
    largest = 2 ** (bits - 1) - 1
    scales = (x.abs().amax(-1, keepdim=True) / largest).clamp(min=1e-30)  # not 0
    return (x / scales).round().to(torch.int8), scales


def dequantize(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return what quantize_absmax has rounded, as numbers (..., n) float32 again."""
    return numbers * scales


# Section 5.19: Whole numbers: what does a quantized layer compute?
def quantize_input(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x as whole numbers from 0 to 255, their scale, and what stands for 0."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-30)
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, 255), scale, zero


KERNEL = "fbgemm"


def has_kernel() -> bool:
    """Whether this PyTorch, on this processor, multiplies whole numbers quickly."""
    return KERNEL in torch.backends.quantized.supported_engines


def packed(numbers: torch.Tensor, scales: torch.Tensor) -> torch.ScriptObject:
    """Return weights (O, I) int8 with scales (O, 1) as the kernel wants them."""
    zeros = torch.zeros(len(numbers), dtype=torch.long)
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = KERNEL
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch will remove its quantized tensors
            weight = torch._make_per_channel_quantized_tensor(
                numbers, scales[:, 0].double(), zeros, 0
            )
            return torch.ops.quantized.linear_prepack(weight, None)
    finally:
        torch.backends.quantized.engine = before


class QuantizedLinear(nn.Module):
    """A linear layer that multiplies whole numbers, for inference on the CPU.

    (B, ..., I) -> (B, ..., O), as the nn.Linear that it is made of. Weights have 7 bits
    and a scale for each row; inputs have 8 bits, and are rounded at each call.
    """

    numbers: torch.Tensor
    scales: torch.Tensor

    def __init__(self, linear: nn.Linear, kernel: bool | None = None):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        numbers, scales = quantize_absmax(linear.weight.detach(), bits=7)
        self.packed = None
        if has_kernel() if kernel is None else kernel:
            self.packed = packed(numbers, scales)  # and nothing else is kept
        else:
            self.register_buffer("numbers", numbers)
            self.register_buffer("scales", scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one_token = x.numel() == self.in_features
        if not one_token:  # a scale for each
            largest = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
            x = x / largest
        if self.packed is not None:
            out = torch.ops.quantized.linear_dynamic(x, self.packed)
        else:
            x_numbers, x_scale, zero = quantize_input(x)
            products = F.linear(x_numbers - zero, self.numbers.float())
            out = products * (x_scale * self.scales[:, 0])
        if not one_token:
            out = out * largest
        return out if self.bias is None else out + self.bias


class QuantizedEmbedding(nn.Module):
    """An embedding in 8 bits: ids (...) -> vectors (..., D) float32."""

    numbers: torch.Tensor
    weight: torch.Tensor

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        numbers, scales = quantize_absmax(embedding.weight.detach())
        self.register_buffer("numbers", numbers)  # (V, D)
        self.register_buffer("weight", scales)  # (V, 1); tells the model's device

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return dequantize(self.numbers[token_ids], self.weight[token_ids])


def quantize(model: Decoder) -> Decoder:
    """Make a model's linear layers and embedding 8-bit ones; return the same model.

    It takes a third of the memory, and writes faster where has_kernel(), but can be
    neither trained nor saved. Raises ValueError for a model that is not in float32 on
    the CPU, or has been quantized already.
    """
    if isinstance(model.tok_emb, QuantizedEmbedding):
        raise ValueError("the model has been quantized already")
    weight = model.tok_emb.weight
    if (weight.device.type, weight.dtype) != ("cpu", torch.float32):
        found = f"{weight.dtype} on {weight.device}"
        raise ValueError(f"a model in float32 on the CPU is wanted, not {found}")
    parents = [part for part in model.modules() if not isinstance(part, nn.Linear)]
    for part in parents:
        for name, child in list(part.named_children()):
            if type(child) is nn.Linear:
                setattr(part, name, QuantizedLinear(child))
    model.tok_emb = QuantizedEmbedding(model.tok_emb)  # type: ignore[assignment]
    return model.eval()


def size_in_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's weights, those inside the kernel included."""
    size = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear) and layer.packed is not None:
            size += layer.out_features * (layer.in_features + 4)
    return size


# Section 5.22: Speculative decoding: can it be faster without being worse?
@torch.no_grad()
def speculate(
    model: Decoder,
    draft: Callable[[list[int], int], list[int]],
    token_ids: torch.Tensor,
    max_new_tokens: int,
    n_draft: int = 4,
) -> tuple[torch.Tensor, list[int]]:
    """Return what greedy generate returns, and how many guesses each pass accepted.

    The same ids but for ties within float rounding; a quantized model rounds several
    tokens otherwise than one. `draft(ids, n)` guesses at most n ids after a list of
    ids; token_ids are (1, T). Raises ValueError if they, or the new ones, do not fit.
    """
    require_whole(0, max_new_tokens=max_new_tokens, n_draft=n_draft)
    ids, context = token_ids[0].tolist(), model.config.context_length
    end = len(ids) + max_new_tokens
    if token_ids.shape != (1, len(ids)) or not ids or end > context:
        shape = tuple(token_ids.shape)
        raise ValueError(f"{shape} and {max_new_tokens} more, at most (1, {context})")
    cache = model.new_cache(1, end)
    accepted = []
    with evaluating(model):
        while len(ids) < end:
            guesses = draft(ids, min(n_draft, end - len(ids) - 1))
            unseen = torch.tensor([ids[cache.length :] + guesses], device=model.device)
            hidden = model.hidden_states(unseen, cache)[0, -len(guesses) - 1 :]
            best = model.out_head(hidden).argmax(-1).tolist()  # after each of them
            agreed = 0
            while agreed < len(guesses) and guesses[agreed] == best[agreed]:
                agreed += 1
            ids += best[: agreed + 1]
            accepted.append(agreed)
            for layer in cache.layers:  # forget what was guessed wrongly
                layer.length = len(ids) - 1
    return torch.tensor([ids], device=token_ids.device), accepted
