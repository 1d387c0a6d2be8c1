"""What several test files need: a small model, a tokenizer; and the rule on skips."""

import os
import shutil
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch

from shared.gpt_model import Decoder, GPTConfig, GPTModel
from shared.llama_model import LlamaConfig, LlamaModel
from shared.support import COURSE
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
CHAT_LLAMA = LlamaConfig(  # a small model for conversations
    TOKENIZER.n_vocab, 1000, emb_dim=16, n_heads=2, n_layers=2, n_kv_heads=1,
    hidden_dim=24,
)  # fmt: skip


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """In CI, a test is skipped for a reason that tests/skips.txt lists, or it fails."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        listed = (COURSE / "tests" / "skips.txt").read_text(encoding="utf-8")
        if reason not in listed.splitlines():
            report.outcome = "failed"
            report.longrepr = f"tests/skips.txt does not list this skip: {reason}"
    return report


@pytest.fixture(scope="session")
def chromium(tmp_path_factory) -> Iterator[Any]:
    """A browser without a screen, driven by selenium."""
    reason = "needs selenium, chromium and chromedriver"
    webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-background-networking",
        "disable-component-update", "disable-sync", "no-proxy-server",
        "window-size=900,1400", f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    session = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield session
    session.quit()
