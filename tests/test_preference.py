"""Chapter 7: direct preference optimisation, against the formula."""

import importlib
import json
import math
import re
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import CHAT_LLAMA, TOKENIZER, build, shaken

from shared.instruction import answer_log_probs
from shared.preference import (
    collate_pairs,
    dpo_loss,
    encode_pairs,
    load_preferences,
    preference_margins,
)
from shared.pretrained_weights import end_token
from shared.pretraining import TrainConfig, Trainer, evaluate, train
from shared.support import COURSE

CHAPTER = COURSE / "ch07_instruction"
sys.path.append(str(CHAPTER))
judge, pairs = map(importlib.import_module, ("judge", "pairs"))

CONFIG = replace(CHAT_LLAMA, context_length=200)
PAIRS = [
    {"prompt": "Is it?", "chosen": "yes", "rejected": "yes, it is true"},
    {"prompt": "Is it not?", "chosen": "no", "rejected": "no, it is not true, no"},
]


def log_probs_by_hand(model: torch.nn.Module, examples: list[tuple]) -> torch.Tensor:
    """Return the log-probabilities (2, B), each answer alone and token by token."""
    rows: list[list[torch.Tensor]] = [[], []]
    for pair in examples:
        for row, (prompt, answer) in zip(rows, pair, strict=True):
            logits = model(torch.tensor([prompt + answer]))[0]
            log_probs = logits.log_softmax(dim=-1)[len(prompt) - 1 :]
            row.append(
                torch.stack([log_probs[n, i] for n, i in enumerate(answer)]).sum()
            )
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_margins_and_their_gradient_by_hand(beta):
    policy = torch.tensor([[-4.0, -1.0], [-5.0, -9.0]], requires_grad=True)
    reference = torch.tensor([[-5.0, -2.5], [-4.0, -9.0]])
    margins = preference_margins(policy, reference, beta)
    assert margins.tolist() == pytest.approx([2 * beta, 1.5 * beta])
    margins.sum().backward()
    assert policy.grad.tolist() == [
        pytest.approx([beta] * 2),
        pytest.approx([-beta] * 2),
    ]


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_loss_and_gradient_are_those_of_the_formula(beta):
    examples = encode_pairs(PAIRS, TOKENIZER, 200)
    reference = torch.tensor([[-30.0, -20.0], [-50.0, -60.0]])

    model = shaken(build(CONFIG))
    batch = (*collate_pairs(examples), reference)
    loss, count = dpo_loss(model, *batch, beta)
    loss.backward()
    assert count == 2

    again = shaken(build(CONFIG))
    rewards = beta * (log_probs_by_hand(again, examples) - reference)
    by_hand = torch.log1p(torch.exp(rewards[1] - rewards[0])).sum()
    by_hand.backward()
    torch.testing.assert_close(loss, by_hand, atol=1e-4, rtol=1e-4)
    theirs = dict(again.named_parameters())
    for name, parameter in model.named_parameters():
        expected = theirs[name].grad
        size = expected.abs().max()
        torch.testing.assert_close(parameter.grad / size, expected / size,
                                   atol=1e-3, rtol=0)  # fmt: skip
        assert size > 0


def test_at_first_nothing_is_preferred():
    model = build(CONFIG)
    batch = collate_pairs(encode_pairs(PAIRS, TOKENIZER, 200))
    with torch.no_grad():
        reference = answer_log_probs(model, *batch)[0].view(2, -1)
        loss, count = dpo_loss(model, *batch, reference)
    assert loss.item() / count == pytest.approx(math.log(2), abs=1e-5)
    assert not preference_margins(reference, reference).any()


def test_a_pair_that_is_hopeless_has_a_finite_loss():
    batch = collate_pairs(encode_pairs(PAIRS, TOKENIZER, 200))
    reference = torch.tensor([[1e5, 1e5], [-1e5, -1e5]])
    with torch.no_grad():
        loss, _ = dpo_loss(build(CONFIG), *batch, reference)
    assert loss.isfinite() and loss > 1e4


def test_a_batch_holds_the_chosen_answers_first():
    examples = encode_pairs(PAIRS, TOKENIZER, 200)
    model = shaken(build(CONFIG))
    with torch.no_grad():
        log_probs, counts = answer_log_probs(model, *collate_pairs(examples))
        by_hand = log_probs_by_hand(model, examples)
    torch.testing.assert_close(log_probs.view(2, -1), by_hand, atol=1e-3, rtol=1e-5)
    lengths = [[len(pair[side][1]) for pair in examples] for side in (0, 1)]
    assert counts.view(2, -1).tolist() == lengths
    for chosen, rejected in examples:
        assert chosen[0] == rejected[0]
        assert chosen[1][-1] == rejected[1][-1] == end_token(TOKENIZER)


def test_training_raises_the_margin():
    model = build(CONFIG)
    batch = collate_pairs(encode_pairs(PAIRS, TOKENIZER, 200))
    with torch.no_grad():
        reference = answer_log_probs(model, *batch)[0].view(2, -1)
    config = TrainConfig(40, 1e-2, weight_decay=0.0)
    trainer = Trainer(model, config, loss=partial(dpo_loss, beta=1.0))
    batches = [(*batch, reference)] * 40
    records = list(train(trainer, batches, progress=False))
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert [record["step_tokens"] for record in records] == [2] * 40  # pairs
    assert evaluate(model, batches[:1], trainer.loss) < 0.3
    with torch.no_grad():
        policy = answer_log_probs(model.eval(), *batch)[0].view(2, -1)
    assert (preference_margins(policy, reference) > 0).all()


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


def test_the_figure_has_the_numbers_of_the_hand_example():
    svg = (CHAPTER / "figures" / "dpo.svg").read_text("utf-8").replace("&#8722;", "-")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    log_probs = [float(t) for t in texts if re.fullmatch(r"-\d+", t)]
    policy, reference = torch.tensor(log_probs).view(2, 2, 1).unbind(1)
    margin = preference_margins(policy, reference, 0.5)
    rewards = [t for t in texts if re.fullmatch(r"-?\d\.\d\d", t)]
    assert rewards == [f"{r:.2f}" for r in (0.5 * (policy - reference)).flatten()]
    assert f"margin = {rewards[0]} - ({rewards[1]}) = {margin.item():.2f}" in texts
    loss = -torch.nn.functional.logsigmoid(margin).item()
    assert f"loss = {loss:.2f}" in texts and "&#946; = 0.5" in texts


ENTRY = {"accepted": ["cow"]}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["A cow says it.", "A pig.", "A cow.", None], ("A cow.", "A pig.", "wrong")),
        (["A cow.", "It is of course a cow.", "Cow!"], ("Cow!", 1, "long")),
        (["A cow.", "The cow."], None),
        (["A pig.", None], None),
    ],
)
def test_pairs_of_samples(answers, expected):
    found = pairs.pair(answers, ENTRY)
    if expected is None:
        assert found is None
    else:
        chosen, rejected, why = expected
        rejected = answers[rejected] if isinstance(rejected, int) else rejected
        assert found == {"chosen": chosen, "rejected": rejected, "why": why}


def test_samples_end_or_are_none():
    model = shaken(build(CONFIG))
    answers = pairs.sample(model, TOKENIZER, ["Is it?", "Is it not so?"], 1)
    assert [len(row) for row in answers] == [pairs.N_SAMPLES] * 2
    again = pairs.sample(model, TOKENIZER, ["Is it?", "Is it not so?"], 1)
    assert answers == again


def test_the_judge_is_asked_about_known_answers(monkeypatch):
    asked = []

    def create(**request):
        asked.append(request)
        message = SimpleNamespace(content="Score: 7")
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    monkeypatch.setenv("LLM_COURSE_JUDGE_MODEL", "some-judge")
    completions = SimpleNamespace(create=create)
    found = judge.judge_known_answers(
        SimpleNamespace(chat=SimpleNamespace(completions=completions))
    )
    assert found["model"] == "some-judge" and len(found["replies"]) == len(asked) == 10
    for reply, request in zip(found["replies"], asked, strict=True):
        assert reply["answer"] in request["messages"][0]["content"]
        assert (reply["answer"] == reply["output"]) == reply["right"]
