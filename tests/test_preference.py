"""Chapter 7: direct preference optimisation, against the formula."""

import json
import math

import pytest
import torch

from shared.instruction import end_token
from shared.llama_model import LlamaConfig, LlamaModel
from shared.lora import apply_lora, without_adapter
from shared.preference import dpo_loss, encode_pairs, load_preferences, pair_log_probs
from shared.text_data import END_OF_TEXT, BPETokenizer

SPECIAL = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"]
TOKENIZER = BPETokenizer.train("is it true? yes, it is true. no", 270, SPECIAL)
PAIRS = [
    {"prompt": "Is it?", "chosen": "yes", "rejected": "yes, it is true"},
    {"prompt": "Is it not?", "chosen": "no", "rejected": "no, it is not true, no"},
]


def build():
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(270 + 3, 200, 16, 2, 1, 2, hidden_dim=24)).eval()


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_loss_and_gradient_by_hand(beta):
    policy = torch.tensor([[-4.0, -1.0], [-5.0, -9.0]], requires_grad=True)
    reference = torch.tensor([[-5.0, -2.5], [-4.0, -9.0]])
    loss, margins = dpo_loss(policy, reference, beta)
    expected = [2 * beta, 1.5 * beta]
    assert margins.tolist() == pytest.approx(expected) and not margins.requires_grad
    assert loss.item() == pytest.approx(
        sum(math.log1p(math.exp(-m)) for m in expected) / 2
    )
    loss.backward()
    slopes = [beta / (1 + math.exp(m)) / 2 for m in expected]
    assert policy.grad[0].tolist() == pytest.approx([-s for s in slopes])
    assert policy.grad[1].tolist() == pytest.approx(slopes)


def test_at_first_nothing_is_preferred():
    same = torch.randn(2, 5)
    loss, margins = dpo_loss(same, same)
    assert loss.item() == pytest.approx(math.log(2)) and not margins.any()
    assert dpo_loss(torch.tensor([[-1e4], [0.0]]), torch.zeros(2, 1))[0].isfinite()


def test_log_probabilities_of_pairs():
    model, examples = build(), encode_pairs(PAIRS, TOKENIZER, 200)
    with torch.no_grad():
        log_probs, counts = pair_log_probs(model, examples, end_token(TOKENIZER))
        for n, pair in enumerate(examples):
            for side, (prompt, answer) in enumerate(pair):
                rows = model(torch.tensor([prompt + answer]))[0].log_softmax(dim=-1)
                by_hand = sum(
                    rows[len(prompt) - 1 + i, id_] for i, id_ in enumerate(answer)
                )
                torch.testing.assert_close(
                    log_probs[side, n], by_hand, atol=1e-4, rtol=1e-5
                )
                assert counts[side, n] == len(answer)
    assert examples[0][0][0] == examples[0][1][0] and examples[0][0][1][
        -1
    ] == end_token(TOKENIZER)


def test_training_raises_the_margin():
    model, examples = apply_lora(build(), rank=4), encode_pairs(PAIRS, TOKENIZER, 200)
    with torch.no_grad(), without_adapter(model):
        reference, _ = pair_log_probs(model, examples, 0)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], 1e-2
    )
    losses = []
    for _ in range(60):
        loss, margins = dpo_loss(pair_log_probs(model, examples, 0)[0], reference, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < 0.2 and (margins > 1).all()


def test_files(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(PAIRS))
    assert load_preferences(path) == PAIRS
    for wrong in ({"prompt": "x", "chosen": "y"}, {**PAIRS[0], "rejected": None}, "x"):
        path.write_text(json.dumps([PAIRS[0], wrong]))
        with pytest.raises(ValueError, match="entry 1 has no text as its"):
            load_preferences(path)
    with pytest.raises(ValueError, match="more than the context of 20"):
        encode_pairs(PAIRS, TOKENIZER, 20)
