"""Chapter 5: loss, optimizers, training, sampling, models on disk, against torch."""

import contextlib
import itertools
import json
import math
import random
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import GPT, LLAMA, TOKENIZER, build, shaken
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import nn

import shared.pretraining
from shared.classification import Classifier
from shared.gpt_model import Decoder, GPTModel
from shared.lora import apply_lora
from shared.pretraining import (
    IGNORE,
    Muon,
    TrainConfig,
    Trainer,
    evaluate,
    generate,
    learning_rate_at,
    load_model,
    make_optimizers,
    mean_loss,
    next_token_loss,
    orthogonalise,
    sample_next,
    save_model,
    story_batch,
    stream,
    train,
)
from shared.support import COURSE
from shared.support.modules import evaluating
from shared.support.tiny_tales import RULES, tales
from shared.text_data import END_OF_TEXT
from shared.tokenizer import BPETokenizer

sys.path.append(str(COURSE / "ch05_pretraining"))
from checkpoints import load_checkpoint, save_checkpoint

WITH_DROPOUT = replace(GPT, dropout=0.1)
each_model = pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])
few = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)


def batch(i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random token ids and targets (3, 12) number i."""
    generator = torch.Generator().manual_seed(i)
    rows = torch.randint(50, (3, 13), generator=generator)
    return rows[:, :-1], rows[:, 1:]


def some_ignored(i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return batch i, with 27 of its 36 targets that count."""
    token_ids, targets = batch(i)
    targets = targets.clone()
    targets[0, 3:] = IGNORE
    return token_ids, targets


def row_by_row(whole: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, ...]]:
    """Cut a batch into batches of one row."""
    return [tuple(part[n : n + 1] for part in whole) for n in range(len(whole[0]))]


def batches(first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield four batches over and over, from number `first` on."""
    for i in itertools.count(first):
        yield batch(i % 4)


def states(trainer: Trainer) -> list[torch.Tensor]:
    """Return all numbers that a trainer holds."""
    found = list(trainer.model.state_dict().values())
    for optimizer in trainer.optimizers:
        for _, state in sorted(optimizer.state_dict()["state"].items()):
            found += [torch.as_tensor(value) for _, value in sorted(state.items())]
    return found


def assert_same_states(one: Trainer, other: Trainer) -> None:
    for a, b in zip(states(one), states(other), strict=True):
        assert torch.equal(a, b)


# --- loss -----------------------------------------------------------------------------


def test_loss_by_hand_and_ignored_targets():
    model = build()
    token_ids, targets = some_ignored(0)
    log_p = model(token_ids).log_softmax(dim=-1)
    expected = -sum(
        log_p[b, t, targets[b, t]]
        for b, t in itertools.product(range(3), range(12))
        if targets[b, t] != IGNORE
    )
    total, count = next_token_loss(model, token_ids, targets)
    torch.testing.assert_close(total, expected)
    assert count == 27
    mean = evaluate(model, [(token_ids, targets)])
    assert mean == pytest.approx(expected.item() / 27, rel=1e-5)


def test_a_wrapped_model_has_the_same_loss_and_gradients():
    model = build()
    token_ids, targets = some_ignored(0)
    gradients = []
    for called in (model, nn.Sequential(model)):
        model.zero_grad()
        total, _ = next_token_loss(called, token_ids, targets)
        total.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_evaluation_weighs_tokens_alike_and_restores_the_mode():
    model = build(WITH_DROPOUT).train()
    whole = evaluate(model, [some_ignored(1)])
    split = evaluate(model, row_by_row(some_ignored(1)))
    assert whole == pytest.approx(split, rel=1e-5) and model.training
    with pytest.raises(ValueError, match="no targets"):
        evaluate(model, [])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sums_are_exact_whatever_the_models_type(seed):
    token_ids, targets = some_ignored(seed)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = shaken(build(seed=seed), seed).to(dtype)
        with torch.no_grad():
            logits = model(token_ids).double()  # what it says, to be summed in float64
            expected = F.cross_entropy(
                logits.mT, targets, ignore_index=IGNORE, reduction="sum"
            )
            total, _ = next_token_loss(model, token_ids, targets)
        close = 1e-12 if dtype == torch.float64 else 1e-5
        assert total.item() == pytest.approx(expected.item(), rel=close)


def mixed_modes() -> nn.Module:
    """Return a model with dropout of which one block alone is in training mode."""
    model = build(WITH_DROPOUT)
    model.blocks[1].train()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [part.training for part in model.modules()]


def broken_loss(model, token_ids, targets):
    raise KeyError("in the middle")


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda m: evaluate(m, [batch(0)]), None),
        (lambda m: evaluate(m, [batch(0)], broken_loss), KeyError),
        (lambda m: evaluate(m, []), ValueError),
        (lambda m: generate(m, batch(0)[0], 3), None),
        (lambda m: generate(m, batch(0)[0] + 99, 3), IndexError),
        (lambda m: list(train(Trainer(m, TrainConfig(2)), batches())), None),
        (
            lambda m: list(train(Trainer(m, TrainConfig(2), broken_loss), batches())),
            KeyError,
        ),
    ],
)
def test_every_part_of_a_model_gets_its_mode_back(use, error):
    model = mixed_modes()
    before = modes(model)
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        use(model)
    assert modes(model) == before and True in before and False in before


def test_evaluating():
    model = mixed_modes()
    before = modes(model)
    with pytest.raises(KeyError), evaluating(model):
        assert not any(modes(model))
        raise KeyError
    assert modes(model) == before


# --- settings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"max_steps": 0}, {"warmup_steps": 11}, {"warmup_steps": -1}, {"accumulate": 0},
        {"learning_rate": 0.0}, {"learning_rate": 1.5}, {"learning_rate": float("nan")},
        {"final_share": 1.1}, {"max_grad_norm": 0.0}, {"weight_decay": -0.1},
        {"max_steps": 2.5}, {"max_steps": 8.0}, {"accumulate": 1.5},
        {"warmup_steps": 0.5}, {"max_steps": float("inf")}, {"accumulate": "2"},
    ],
)  # fmt: skip
def test_settings_out_of_range(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"out of range: .*{name}={value!r}"):
        replace(TrainConfig(10), **change)


def test_schedule():
    config = TrainConfig(11, learning_rate=0.1, warmup_steps=4, final_share=0.2)
    rates = [learning_rate_at(step, config) for step in range(11)]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates[4] == pytest.approx(0.1) and rates[-1] == pytest.approx(0.02)
    assert rates[7] == pytest.approx((0.1 + 0.02) / 2)  # half way down the cosine
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate_at(0, TrainConfig(1)) == 1e-3


@pytest.mark.parametrize("muon", [False, True])
@each_model
def test_every_weight_has_one_optimizer(config, muon):
    model = build(config)
    model.tok_emb.weight.requires_grad_(False)
    model.out_head = nn.Linear(config.emb_dim, 3)
    optimizers = make_optimizers(model, TrainConfig(1, muon=muon, weight_decay=0.3))
    kinds = [type(optimizer).__name__ for optimizer in optimizers]
    assert kinds == (["Muon", "AdamW"] if muon else ["AdamW"])
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}
    for group in groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.3 if p.ndim >= 2 else 0.0)
    if muon:
        matrices = {id(p) for p in model.blocks.parameters() if p.ndim == 2}
        assert {id(p) for p in optimizers[0].param_groups[0]["params"]} == matrices


# --- Muon -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 8), (8, 16), (1, 7), (24, 24), (96, 24)])
def test_muon_steps_as_torchs_does(shape):
    generator = torch.Generator().manual_seed(sum(shape))
    start = torch.randn(shape, generator=generator)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    unused = nn.Parameter(torch.ones(2, 2))  # without a gradient
    optimizers = [
        Muon([ours, unused], 0.1, weight_decay=0.3, momentum=0.9),
        torch.optim.Muon(
            [theirs], 0.1, weight_decay=0.3, momentum=0.9,
            adjust_lr_fn="match_rms_adamw",
        ),
    ]  # fmt: skip
    for step in range(1, 7):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / step
            optimizer.step()
    moved = (ours - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved  # torch multiplies in bfloat16
    assert torch.equal(unused, torch.ones(2, 2))


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
def test_orthogonalised_matrices_keep_their_directions(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):  # each singular value goes through the polynomial alone
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    expected = u @ torch.diag(s) @ v
    torch.testing.assert_close(orthogonalise(matrix), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(orthogonalise(1e4 * matrix), orthogonalise(matrix))
    assert orthogonalise(matrix.bfloat16()).dtype == torch.float32
    assert torch.equal(orthogonalise(torch.zeros(shape)), torch.zeros(shape))


# --- one step -------------------------------------------------------------------------


def test_one_step_equals_torch_by_hand():
    config = TrainConfig(5, learning_rate=0.01, weight_decay=0.0, max_grad_norm=0.5)
    ours, theirs = build(), build()
    optimizer = torch.optim.AdamW(
        theirs.parameters(), 0.01, (0.9, 0.95), weight_decay=0.0
    )
    trainer = Trainer(ours, config)
    for step in range(3):
        token_ids, targets = batch(step)
        loss = F.cross_entropy(theirs(token_ids).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in theirs.parameters()))
        for p in theirs.parameters():
            p.grad *= min(1.0, 0.5 / norm.item())
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, config)
        optimizer.step()
        ours_loss = trainer.train_step([(token_ids, targets)])
        assert ours_loss == pytest.approx(loss.item(), rel=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert trainer.step == 3 and trainer.tokens == 3 * 36


def squares(model, x, y) -> tuple[torch.Tensor, int]:
    """A loss for a trainer: the sum of squared errors, and how many there are."""
    return (model(x)[:, 0] - y).square().sum(), len(y)


def test_another_loss_and_model_equal_torch_by_hand():
    torch.manual_seed(0)
    data = [(torch.randn(rows, 3), torch.randn(rows)) for rows in (5, 1, 2, 4, 3, 3)]
    config = TrainConfig(3, 0.1, weight_decay=0.5, max_grad_norm=1e9, accumulate=2)
    model = nn.Linear(3, 1)
    trainer = Trainer(model, config, squares)
    by_hand = nn.Linear(3, 1)
    by_hand.load_state_dict(model.state_dict())
    decayed = {"params": [by_hand.weight], "weight_decay": 0.5}
    others = {"params": [by_hand.bias], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decayed, others], 0.1, betas=(0.9, 0.95))
    records = list(train(trainer, data, progress=False))
    assert [record["step_tokens"] for record in records] == [6, 6, 6]
    for step, record in enumerate(records):
        x = torch.cat([data[2 * step][0], data[2 * step + 1][0]])
        y = torch.cat([data[2 * step][1], data[2 * step + 1][1]])
        loss = F.mse_loss(by_hand(x)[:, 0], y)
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        optimizer.step()
    torch.testing.assert_close(model.weight.grad, by_hand.weight.grad)  # of a mean
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict())
    mean = evaluate(model, data, squares)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    assert mean == pytest.approx(F.mse_loss(model(x)[:, 0], y).item(), rel=1e-5)


def test_accumulated_batches_count_every_token_alike():
    one, other = Trainer(build(), TrainConfig(3)), Trainer(build(), TrainConfig(3))
    whole = one.train_step([some_ignored(0)])
    parts = other.train_step(row_by_row(some_ignored(0)))
    assert whole == pytest.approx(parts, rel=1e-5)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights():
    losses = []
    for mixed in (False, True):
        trainer = Trainer(shaken(build()), TrainConfig(3, bfloat16=mixed))
        losses.append(trainer.train_step([batch(0)]))
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_not_a_number_stops_and_changes_nothing():
    trainer = Trainer(build(), TrainConfig(5))
    trainer.train_step([batch(0)])
    before = [tensor.clone() for tensor in states(trainer)]
    with torch.no_grad():
        broken = trainer.model.pos_emb.weight[0, 0].item()
        trainer.model.pos_emb.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="step 1: loss nan"):
        trainer.train_step([batch(1)])
    with torch.no_grad():
        trainer.model.pos_emb.weight[0, 0] = broken
    for a, b in zip(states(trainer), before, strict=True):
        assert torch.equal(a, b)
    assert trainer.step == 1
    with pytest.raises(ValueError, match="nothing counts"):
        trainer.train_step([(batch(0)[0], torch.full((3, 12), IGNORE))])


@pytest.mark.parametrize("model", [build(), nn.Linear(2, 2), nn.Identity()])
def test_a_frozen_model_cannot_be_trained(model):
    with pytest.raises(ValueError, match="no weights that are trained"):
        Trainer(model.requires_grad_(False), TrainConfig(1))


# --- the loop -------------------------------------------------------------------------


@pytest.mark.parametrize("muon", [False, True])
def test_training_learns_and_records(muon):
    model = build()
    config = TrainConfig(40, learning_rate=0.01, muon=muon, warmup_steps=3)
    before = evaluate(model, [batch(0)])
    records = list(train(Trainer(model, config), batches(), progress=False))
    assert [record["step"] for record in records] == list(range(1, 41))
    assert [record["tokens"] for record in records] == list(range(36, 1441, 36))
    assert records[2]["learning_rate"] == 0.01
    assert records[-1]["learning_rate"] == pytest.approx(0.001)
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)
    assert evaluate(model, [batch(0)]) < 0.8 * before
    assert not model.training  # as it was


def test_evaluating_between_records_changes_nothing():
    config = TrainConfig(8, muon=True)
    torch.manual_seed(1)
    plain = Trainer(build(WITH_DROPOUT), config)
    expected = [record["loss"] for record in train(plain, batches(), progress=False)]
    torch.manual_seed(1)
    watched = Trainer(build(WITH_DROPOUT), config)
    losses = []
    for record in train(watched, batches(), progress=False):
        losses.append(record["loss"])
        evaluate(watched.model, [batch(9)])
        watched.model.eval()  # and left like that
        generate(watched.model, batch(9)[0], 2)
    assert losses == expected
    assert_same_states(plain, watched)


def test_a_loop_can_be_stopped_and_continued():
    config = TrainConfig(8, muon=True, accumulate=2)
    whole = Trainer(build(), config)
    for _ in train(whole, batches(), progress=False):
        pass
    parts = Trainer(build(), config)
    for record in train(parts, batches(), progress=False):
        if record["step"] == 3:
            break
    assert parts.step == 3
    records = list(train(parts, batches(2 * parts.step), progress=False))
    assert [record["step"] for record in records] == [4, 5, 6, 7, 8]
    assert_same_states(whole, parts)
    assert list(train(parts, batches(), progress=False)) == []  # it is at its end


def test_training_ends_when_the_batches_run_out(capsys):
    trainer = Trainer(build(), TrainConfig(9, accumulate=2))
    three = list(itertools.islice(batches(), 3))
    records = list(train(trainer, three))
    assert [record["step_tokens"] for record in records] == [72, 36]
    assert "2/9" in capsys.readouterr().out  # the progress bar


@pytest.mark.parametrize("counts", [(11, 101), (1, 36, 2), (5, 5)])
def test_the_mean_over_steps_is_that_of_all_that_counts(counts):
    model = nn.Linear(3, 1)
    data = [(torch.full((n, 3), float(n)), torch.zeros(n)) for n in counts]
    config = TrainConfig(len(counts), 1e-9)
    records = list(train(Trainer(model, config, squares), data, progress=False))
    assert mean_loss(records) == pytest.approx(evaluate(model, data, squares), rel=1e-4)


# --- sampling -------------------------------------------------------------------------


def test_draws_follow_the_probabilities():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    rows = logits.expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    for temperature in (0.5, 1.0, 3.0):
        ids = sample_next(rows, temperature, generator=generator)
        shares = ids.bincount(minlength=4) / 20_000
        expected = (logits / temperature).softmax(0)
        torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)
    assert (sample_next(rows, 0.0) == 3).all() and (sample_next(rows, 1e-30) == 3).all()


@few
@given(
    st.lists(st.integers(-50, 50), min_size=1, max_size=12, unique=True),
    st.integers(1, 15), st.floats(0.01, 1.0), st.integers(0, 10**6),
)  # fmt: skip
def test_top_k_and_top_p_keep_what_they_should(values, k, p, seed):
    logits = torch.tensor(values, dtype=torch.float32) / 10
    generator = torch.Generator().manual_seed(seed)
    rows = logits.expand(300, len(values))
    order = logits.argsort(descending=True).tolist()
    drawn = sample_next(rows, top_k=k, generator=generator)
    assert set(drawn.tolist()) <= set(order[:k])
    kept, reached = [], 0.0
    for token in order:  # by the definition, one after the other
        if reached >= p - 1e-6:
            break
        kept.append(token)
        reached += logits.softmax(0)[token].item()
    drawn = sample_next(rows, top_p=p, generator=generator)
    assert set(drawn.tolist()) <= set(kept)
    for narrow in ({"top_k": 1}, {"top_p": 1e-9}):
        assert sample_next(rows[:1], **narrow).item() == order[0]


@few
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_top_p_keeps_the_smallest_set_that_reaches_it(weights, data):
    n = data.draw(st.integers(1, len(weights)))
    likeliest = sorted(weights, reverse=True)[:n]
    top_p = sum(likeliest) / sum(weights)  # the n likeliest reach it exactly
    rows = (torch.tensor(weights) / sum(weights)).log().expand(3000, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = sample_next(rows, top_p=top_p, generator=generator).unique().tolist()
    assert sorted((weights[i] for i in drawn), reverse=True) == likeliest


@pytest.mark.parametrize("spread", [1.0, 3.0, 6.0])
def test_a_top_p_of_1_removes_nothing(spread, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(2, 50_257, generator=generator)
    handed_over = []

    def draw(probabilities, n, generator=None):
        handed_over.append(probabilities)
        return probabilities.argmax(dim=-1, keepdim=True)

    monkeypatch.setattr(torch, "multinomial", draw)
    sample_next(logits, top_p=1.0)
    sample_next(logits)
    assert torch.equal(*handed_over) and (handed_over[0] > 0).all()


@pytest.mark.parametrize("temperature", [1e-38, 1e-46, 5e-324])
def test_a_temperature_of_almost_nothing_is_greedy(temperature):
    logits = 20 * torch.randn(50, 99, generator=torch.Generator().manual_seed(0))
    logits[:, 5] = -torch.inf
    for options in ({}, {"top_k": 7}, {"top_p": 0.9}):
        drawn = sample_next(logits, temperature, **options)
        assert torch.equal(drawn, logits.argmax(dim=-1))


@pytest.mark.parametrize("temperature", [1e30, 1e300, float("inf")])
@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, 8), ({"top_k": 3}, 3), ({"top_p": 0.5}, 4),
        ({"top_k": 4, "top_p": 0.5}, 2), ({"top_p": 1.0}, 8),
    ],
)  # fmt: skip
def test_an_infinite_temperature_draws_alike_what_is_left(temperature, options, left):
    logits = torch.tensor([-3.0, 0.5, 2.0, 9.0, -torch.inf, 1.0, -40.0, 3.0, 2.5])
    rows = logits.expand(8000, 9)
    generator = torch.Generator().manual_seed(0)
    drawn = sample_next(rows, temperature, generator=generator, **options)
    shares = drawn.bincount(minlength=9) / 8000
    likeliest = logits.argsort(descending=True)[:left]
    assert shares[likeliest].tolist() == pytest.approx([1 / left] * left, abs=0.03)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 2.5}, {"temperature": -1.0}, {"temperature": float("nan")},
        {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1},
    ],
)  # fmt: skip
def test_bad_sampling_settings(options):
    with pytest.raises(ValueError, match="temperature|top_p"):
        sample_next(torch.zeros(1, 4), **options)


@each_model
def test_generate(config):
    model = build(config)
    prompt = torch.randint(50, (3, 4), generator=torch.Generator().manual_seed(3))
    expected = prompt
    for _ in range(8):  # greedy, by hand, without a cache
        with torch.no_grad():
            logits = model(expected)
        expected = torch.cat([expected, logits[:, -1:].argmax(dim=-1)], dim=1)
    model.train()
    assert torch.equal(generate(model, prompt, 8), expected) and model.training
    drawn = [
        generate(
            model, prompt, 8, temperature=1.3, top_p=0.9,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert generate(model, prompt, 99).shape == (3, 16)  # the context is full
    assert torch.equal(generate(model, prompt, 0), prompt)
    full = torch.zeros(1, 16, dtype=torch.int64)
    with warnings.catch_warnings(action="error"):
        assert torch.equal(generate(model, full, 0), full)


@pytest.mark.parametrize(
    ("token_ids", "options", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), {}, r"\(B, T\), got \(5,\)"),
        (torch.tensor(7), {}, r"\(B, T\), got \(\)"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), {}, r"\(B, T\), got \(1, 2, 3\)"),
        (batch(0)[0], {"max_new_tokens": -1}, "max_new_tokens .* least 0, got -1"),
        (batch(0)[0], {"max_new_tokens": -99}, "max_new_tokens .* least 0, got -99"),
        (batch(0)[0], {"max_new_tokens": 2.5}, "max_new_tokens .* whole .* got 2.5"),
        (batch(0)[0], {"pad_left": [0, -1, 0]}, "pad_left is .*, not 0 to 11"),
        (batch(0)[0], {"pad_left": [0, 12, 0]}, "pad_left is .*, not 0 to 11"),
        (
            batch(0)[0].repeat(1, 2),
            {"pad_left": [0, 0, -3]},
            "pad_left is .*, not 0 to 23",
        ),
        (batch(0)[0], {"pad_left": [0, 0]}, "pad_left must be 3 numbers"),
    ],
)
def test_prompts_that_cannot_be_continued(token_ids, options, message):
    if "pad_left" in options:
        options = options | {"pad_left": torch.tensor(options["pad_left"])}
    with pytest.raises(ValueError, match=message):
        generate(build(), token_ids, **({"max_new_tokens": 3} | options))


@each_model
def test_stream_yields_what_generate_collects(config):
    model = build(config)
    prompt = torch.randint(50, (3, 4), generator=torch.Generator().manual_seed(3))
    for options in ({}, {"temperature": 1.3, "top_k": 9}, {"stop_token": 7}):
        both = []
        for function in (generate, stream):
            generator = torch.Generator().manual_seed(1)
            both.append(function(model, prompt, 8, generator=generator, **options))
        collected, steps = both[0], list(both[1])
        assert all(ids.shape == (3,) for ids in steps)
        assert torch.equal(torch.stack(steps, dim=1), collected[:, 4:])


def test_a_stream_that_is_closed_early_leaves_the_model_as_it_was():
    model = build(WITH_DROPOUT).train()
    steps = stream(model, torch.zeros(2, 3, dtype=torch.int64), 8)
    for ids in steps:
        assert torch.is_grad_enabled() and not ids.requires_grad
        break
    assert not model.training  # it waits in the middle
    steps.close()
    assert model.training


@pytest.mark.parametrize(
    ("n_prompt", "n_new", "kept"), [(20, 6, 10), (20, 99, 8), (16, 1, 15), (16, 99, 8)]
)
@pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])
def test_the_last_tokens_of_too_long_a_prompt_are_kept(config, n_prompt, n_new, kept):
    model = shaken(build(config))
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(50, (2, n_prompt), generator=generator)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids = generate(model, prompt, n_new)
        steps = list(stream(model, prompt, n_new))
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2 and messages[0] == messages[1]  # once for each call
    what_was_cut = f"{n_prompt} tokens, the context 16: only the last {kept} are"
    assert what_was_cut in messages[0]
    assert caught[1].filename == __file__
    expected = generate(model, prompt[:, -kept:], n_new)[:, kept:]
    assert torch.equal(ids, torch.cat([prompt, expected], dim=1))
    assert torch.equal(torch.stack(steps, dim=1), expected)


@each_model
@pytest.mark.filterwarnings("ignore:the prompt has")
def test_padding_is_cut_off_with_too_long_a_prompt(config):
    model = shaken(build(config))
    prompt = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(3))
    prompt[1, :13] = 0
    both = generate(model, prompt, 6, pad_left=torch.tensor([4, 13]))
    for row, cut in ((0, 10), (1, 13)):
        alone = generate(model, prompt[row : row + 1, cut:], 6)
        assert torch.equal(both[row, cut:], alone[0])


@each_model
def test_rows_stop_one_by_one(config):
    model = build(config)
    prompt = torch.randint(50, (4, 3), generator=torch.Generator().manual_seed(3))

    def drawn(**options) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        return generate(
            model, prompt, 12, temperature=2.0, generator=generator, **options
        )

    free = drawn()
    stop = free[0, 5].item()  # the first row stops at its third new token at the latest
    ids = drawn(stop_token=stop)
    for row, before in zip(ids[:, 3:].tolist(), free[:, 3:].tolist(), strict=True):
        end = row.index(stop) + 1 if stop in row else len(row)
        assert row[:end] == before[:end] and set(row[end:]) <= {stop}
    assert stop in ids[0, 3:6]
    greedy = generate(model, prompt[:1], 12)
    first = greedy[0, 3].item()
    alone = generate(model, prompt[:1], 12, stop_token=first)
    assert torch.equal(alone, greedy[:, :4])  # all rows have stopped


# --- stories --------------------------------------------------------------------------


class Digits:
    """A tokenizer of digits, in which 9 ends a text."""

    n_vocab = 10
    eot_token = 9

    def encode_ordinary(self, text: str) -> list[int]:
        return [int(digit) for digit in text]


def test_story_batch_by_hand():
    token_ids, targets = story_batch(["1", "345"], Digits(), 4)
    assert token_ids.tolist() == [[9, 1, 9, 9], [9, 3, 4, 5]]
    assert targets.tolist() == [[1, 9, IGNORE, IGNORE], [3, 4, 5, 9]]
    assert token_ids.dtype == targets.dtype == torch.int64
    with pytest.raises(ValueError, match="4 tokens is longer than the context of 3"):
        story_batch(["1", "345"], Digits(), 3)


# --- models on disk -------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("tie", [True, False])
def test_models_come_back(config, tie, tmp_path):
    model = build(replace(config, tie_weights=tie))
    save_model(build(config, seed=5), tmp_path / "m", TOKENIZER)
    save_model(model, tmp_path / "m", TOKENIZER)  # over the old one
    again, tokenizer = load_model(tmp_path / "m")
    assert again.config == model.config and type(again) is type(model)
    assert (again.out_head.weight is again.tok_emb.weight) == tie
    assert not again.training
    token_ids = batch(0)[0]
    assert torch.equal(again(token_ids), model(token_ids))
    assert tokenizer.vocab == TOKENIZER.vocab
    assert tokenizer.special_tokens == TOKENIZER.special_tokens
    assert tokenizer.encode("is it true?") == TOKENIZER.encode("is it true?")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


@each_model
def test_loading_keeps_the_dtype_and_draws_no_random_numbers(config, tmp_path):
    model = build(config).to(torch.bfloat16)
    save_model(model, tmp_path / "m", TOKENIZER)
    torch.manual_seed(7)
    again, _ = load_model(tmp_path / "m")
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))
    assert again.tok_emb.weight.dtype == torch.bfloat16
    assert torch.equal(again(batch(0)[0]), model(batch(0)[0]))


FILES = ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("name", FILES)
def test_missing_and_damaged_files_of_a_model_are_named(name, tmp_path):
    save_model(build(), tmp_path / "m", TOKENIZER)
    file = tmp_path / "m" / name
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}"):
        load_model(tmp_path / "m")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(str(file))}"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "Unknown"}, "Unknown"), ({"n_heads": 5}, "5 heads"),
        ({"colour": "red"}, "colour"), ({"emb_dim": 48}, r"\(50, 24\), not \(50, 48\)"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_told(change, message, tmp_path):
    save_model(build(), tmp_path / "m", TOKENIZER)
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | change))
    folder = re.escape(str(tmp_path / "m"))
    with pytest.raises(ValueError, match=f"^{folder} holds no model.*{message}"):
        load_model(tmp_path / "m")
    config.write_text("[]")
    with pytest.raises(ValueError, match=f"^{folder} holds no model"):
        load_model(tmp_path / "m")


class OwnModel(GPTModel):
    """A model that load_model does not know."""


def with_head(model: Decoder, n_classes: int) -> Decoder:
    model.out_head = nn.Linear(24, n_classes)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (OwnModel(GPT), "OwnModel"),
        (Classifier(build()), "Classifier.*save_classifier"),
        (with_head(build(), 2), "out_head.weight is not that of.*save_classifier"),
        (with_head(build(LLAMA), 50), "out_head.weight is not that of a LlamaModel"),
        (apply_lora(build()), "blocks.0.attention.W_query has.*merge_lora"),
        (nn.Linear(2, 2), "Linear"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(model, message, tmp_path):
    save_model(build(), tmp_path / "m", TOKENIZER)
    with pytest.raises((ValueError, TypeError), match=message):
        save_model(model, tmp_path / "m", TOKENIZER)
    load_model(tmp_path / "m")  # the good one is still there


def test_a_full_disk_leaves_the_old_folder(tmp_path, monkeypatch):
    model = build()
    save_model(model, tmp_path / "m", TOKENIZER)
    real = shared.pretraining.save_file

    def full(tensors, path):
        real({name: tensors[name] for name in list(tensors)[:1]}, path)
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(shared.pretraining, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(build(seed=9), tmp_path / "m", TOKENIZER)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    token_ids = batch(0)[0]
    assert torch.equal(load_model(tmp_path / "m")[0](token_ids), model(token_ids))


# --- checkpoints ----------------------------------------------------------------------


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("config", [WITH_DROPOUT, LLAMA], ids=["gpt", "llama"])
def test_resumed_equals_uninterrupted_bit_for_bit(config, muon, tmp_path):
    settings = TrainConfig(12, muon=muon, warmup_steps=2, accumulate=2)

    def until(trainer: Trainer, step: int) -> Trainer:
        for record in train(trainer, batches(2 * trainer.step), progress=False):
            if record["step"] == step:
                break
        return trainer

    def fresh() -> Trainer:
        trainer = Trainer(build(config), settings)
        torch.manual_seed(7)
        return trainer

    whole = until(fresh(), 12)
    save_checkpoint(until(fresh(), 5), tmp_path / "step-5")
    resumed = Trainer(build(config, seed=3), settings)
    load_checkpoint(resumed, tmp_path / "step-5")
    assert resumed.step == 5 and resumed.tokens == 5 * 72
    assert_same_states(whole, until(resumed, 12))


def test_checkpoints_of_another_configuration(tmp_path):
    trainer = Trainer(build(), TrainConfig(9))
    trainer.train_step([batch(0)])
    save_checkpoint(trainer, tmp_path / "c")
    other = Trainer(build(replace(GPT, emb_dim=32)), TrainConfig(9, weight_decay=0.2))
    before = [tensor.clone() for tensor in states(other)]
    with pytest.raises(
        ValueError, match="emb_dim is 24, here 32; weight_decay is 0.1, here 0.2"
    ):
        load_checkpoint(other, tmp_path / "c")
    assert other.step == 0
    for a, b in zip(states(other), before, strict=True):
        assert torch.equal(a, b)
    longer = Trainer(build(seed=4), TrainConfig(99, learning_rate=0.1, warmup_steps=9))
    load_checkpoint(longer, tmp_path / "c")  # steps and rates are free
    assert longer.step == 1


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


def test_damaged_checkpoints_change_nothing(tmp_path):
    trainer = Trainer(build(), TrainConfig(9))
    trainer.train_step([batch(0)])
    save_checkpoint(trainer, tmp_path / "c")
    fresh = Trainer(build(seed=4), TrainConfig(9))
    unchanged = [tensor.clone() for tensor in states(fresh)]
    bad = tmp_path / "d"
    for name in ("model.safetensors", "training.safetensors"):
        for damage in (flip_a_bit, cut_short):
            shutil.copytree(tmp_path / "c", bad, dirs_exist_ok=True)
            damage(bad / name)
            with pytest.raises(ValueError, match=f"damaged: {name} was altered"):
                load_checkpoint(fresh, bad)
        (bad / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"^{re.escape(str(bad / name))}"):
            load_checkpoint(fresh, bad)
    record = tmp_path / "c" / "checkpoint.json"
    for content in ('{"step": 1}', "[]", '{"step'):
        record.write_text(content)
        with pytest.raises(
            ValueError, match=rf"^{re.escape(str(record.parent))}.* is "
        ):
            load_checkpoint(fresh, tmp_path / "c")
    record.unlink()
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(str(record))}"):
        load_checkpoint(fresh, tmp_path / "c")
    assert fresh.step == 0
    for a, b in zip(states(fresh), unchanged, strict=True):
        assert torch.equal(a, b)


# --- the figures carry the numbers of the cells beside them ---------------------------


def figure(name: str) -> list[str]:
    """Return the texts in a figure of the chapter, in the order of the file."""
    svg = (COURSE / "ch05_pretraining" / "figures" / f"{name}.svg").read_text("utf-8")
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_figure_of_the_cross_entropy_shows_the_cells_numbers():
    logits = torch.tensor(
        [[2.0, 0.5, 0.1, -1.0, 0.0], [0.0] * 5, [0.1, 3.0, 0.2, 0.0, -2.0]]
    )
    p = logits.softmax(dim=-1)
    costs = -p[range(3), [0, 3, 4]].log()
    numbers = [f"{x:.1f}".replace("-", "−") for x in logits[0].tolist()]
    numbers += [f"{x:.2f}" for x in p[0].tolist()] + [f"{p[0, 0]:.3f}"]
    numbers += [f"{x:.2f}" for x in (costs[0], *costs.tolist(), costs.mean())]
    shown = figure("cross_entropy")
    assert [text for text in shown if re.fullmatch(r"[−\d.]*\d", text)] == numbers
    assert [t for t in shown if t in ("her", "Mia", "lost", "kite", ".")] == [
        "her", "Mia", "lost", "kite", ".",
    ]  # fmt: skip


def first_tale() -> tuple[str, list[tuple[str, int]]]:
    """Return the first tale of seed 0, and each choice's rule and number of options."""
    uniform, made, told = random.Random(0).random, [], {}
    rules = dict(RULES)

    def tell(name: str) -> str:
        key = name[0].lower() + name[1:]
        if key not in told:
            option = rules[key]
            while isinstance(option, list):
                made.append((key, len(option)))
                option = option[int(uniform() * len(option))]
            if isinstance(option, dict):
                rules.update(option)
                option = option.get("text", "")
            told[key] = re.sub(r"\{(\w+)\}", lambda match: tell(match[1]), option)
        text = told[key]
        return text if key == name else text[:1].upper() + text[1:]

    return tell("story"), made


def test_figure_of_the_grammar_is_worked_out():
    (tale,) = tales(0, 1)
    text, made = first_tale()
    assert text == tale.text and len(made) == 16
    n_options = dict(made)
    drawn = [n_options[r] for r in "boy home colour trait hello friends".split()]
    shown = figure("story_grammar")
    assert [t for t in shown if t.startswith("1 of ")] == [f"1 of {n}" for n in drawn]
    assert [t for t in shown if t.startswith("p = ")] == [
        f"p = {1 / n:.3f}" for n in drawn
    ]
    costs = [math.log(n) for n in drawn]
    assert [t for t in shown if re.fullmatch(r"\d\.\d\d", t)] == [
        f"{cost:.2f}" for cost in costs
    ]
    sample = "\n".join(tale.text for tale in tales(1, 3000))
    tokenizer = BPETokenizer.train(sample, 2048, [END_OF_TEXT])
    n_tokens = len(tokenizer.encode_ordinary(text)) + 1  # and the end
    whole = -tale.log_prob
    assert {
        f"{sum(costs):.1f} nats", f"{whole - sum(costs):.1f}, ten others",
        f"= {whole:.1f} nats", f"÷ {n_tokens} tokens",
        f"{whole / n_tokens:.2f} per token",
    } <= set(shown)  # fmt: skip
