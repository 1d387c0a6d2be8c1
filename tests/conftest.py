"""What several test files need: a small model, and a tokenizer."""

import torch

from shared.gpt_model import Decoder, GPTConfig, GPTModel
from shared.llama_model import LlamaConfig, LlamaModel
from shared.text_data import END_OF_TEXT
from shared.tokenizer import BPETokenizer

GPT = GPTConfig(50, 16, emb_dim=24, n_heads=4, n_layers=2)
LLAMA = LlamaConfig(
    50, 16, emb_dim=24, n_heads=4, n_kv_heads=2, n_layers=2, hidden_dim=40
)

CHAT_TOKENS = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"]
TOKENIZER = BPETokenizer.train(
    "is it true? yes, it is true. win a prize now, see you at six", 290, CHAT_TOKENS
)


def build(config: GPTConfig | LlamaConfig = GPT, seed: int = 0) -> Decoder:
    """Return a fresh model of either kind, in evaluation mode."""
    torch.manual_seed(seed)
    kind = GPTModel if isinstance(config, GPTConfig) else LlamaModel
    return kind(config).eval()


def shaken(model: torch.nn.Module, seed: int = 0, std: float = 0.3) -> torch.nn.Module:
    """Give every weight a random value far from its start; return the model.

    A fresh model has much that is nearly zero, where a test could pass by accident.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std).add_(1.0 if parameter.ndim == 1 else 0.0)
    return model
