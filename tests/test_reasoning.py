"""Checked answers: gradients, advantages, clipping, KL, masks, the stored runs."""

import csv
import itertools
import json
import re
from hashlib import sha256

import pytest
import torch
import torch.nn.functional as F
from test_explore import Page

from shared.gpt_model import GPTConfig, GPTModel
from shared.instruction import collate
from shared.pretraining import IGNORE, TrainConfig, Trainer, generate, load_model
from shared.reasoning import (
    checked_sum,
    draw_sums,
    group_advantages,
    group_batches,
    policy_loss,
    sample_groups,
    split_of,
    token_log_probs,
    worked_sum,
)
from shared.support import COURSE
from shared.support.explore import explore_samples
from shared.text_data import END_OF_TEXT
from shared.tokenizer import BPETokenizer

CHAPTER = COURSE / "ch07_instruction"
SIGNS = [*"ab", END_OF_TEXT]
AB = BPETokenizer({n: s.encode() for n, s in enumerate(SIGNS)}, [], {END_OF_TEXT: 2})


def toy(seed: int = 0, vocab_size: int = 3) -> GPTModel:
    """Return a small model whose answers are not all alike."""
    torch.manual_seed(seed)
    model = GPTModel(GPTConfig(vocab_size, 12, emb_dim=8, n_heads=2, n_layers=1))
    for p in model.parameters():
        p.data = torch.randn_like(p) / 2
    return model.double().eval()


def gradient(model: GPTModel, value: torch.Tensor) -> torch.Tensor:
    parts = torch.autograd.grad(value, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


# --- the reward and the split


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        (">68", 1.0), ("23+45=68>68", 1.0), ("It is 68.", 1.0), ("68 or 69", 0.0),
        (">068", 1.0), ("", 0.0), ("none", 0.0), (">6", 0.0), (">-68", 1.0),
    ],
)  # fmt: skip
def test_the_last_number_decides(answer, reward):
    assert checked_sum("23+45=", answer) == reward
    assert checked_sum("What is 23 + 45?", answer) == reward


def test_the_order_of_the_numbers_does_not_change_the_split():
    questions = draw_sums(40, "test", 0)
    for question in questions:
        numbers = question.strip("=").split("+")
        orders = {"+".join(order) for order in itertools.permutations(numbers)}
        assert {split_of(order) for order in orders} == {"test"}
    assert not set(questions) & set(draw_sums(2000, "train", 0))
    assert draw_sums(5, "validation", 3, "{} and {}?") == draw_sums(
        5, "validation", 3, "{} and {}?"
    )


def test_a_worked_sum_is_right_in_every_step():
    for question in draw_sums(50, "train", 1):
        text = worked_sum(question)
        for a, b, total in re.findall(r"(\d+)\+(\d+)=(\d+)", text):
            assert int(a) + int(b) == int(total)
        assert checked_sum(question, text) == 1
        assert text.endswith(worked_sum(question, write=False))


# --- the gradient


def test_the_expected_gradient_is_that_of_the_expected_reward():
    """All answers of a toy, weighted by their probability, against autograd."""
    model, prompt, end = toy(), [0, 1], 2
    answers = [[end], *([a, end] for a in (0, 1))]
    answers += [[a, b] for a in (0, 1) for b in (0, 1)]  # cut after two tokens
    token_ids, targets = collate([(prompt, answer) for answer in answers])
    log_probs = token_log_probs(model, token_ids, targets).sum(dim=1)
    torch.testing.assert_close(log_probs.exp().sum(), torch.tensor(1.0).double())
    rewards = torch.tensor([0.0, 1, 0, 0.5, 0, 2, 1]).double()
    exact = gradient(model, (log_probs.exp() * rewards).sum())
    chances = token_log_probs(model, token_ids, targets).sum(dim=1).exp().detach()
    for baseline in (0.0, 0.7):
        weights = chances * (rewards - baseline)
        # Divided by 1, so that tokens are added up: REINFORCE.
        loss, count = policy_loss(model, token_ids, targets, weights, per=1)
        assert count == len(answers)
        torch.testing.assert_close(gradient(model, -loss), exact)


def test_sampled_gradients_have_the_exact_mean():
    model = toy(1)
    torch.manual_seed(0)
    token_ids, targets, texts = sample_groups(
        model, AB, [[0, 1]], 4000, max_new_tokens=2
    )
    rewards = torch.tensor([float(text.startswith("a")) for text in texts]).double()
    loss, _ = policy_loss(model, token_ids, targets, rewards - 0.5, per=1)
    sampled = gradient(model, -loss) / 4000
    probabilities = model(torch.tensor([[0, 1]]))[0, -1].softmax(dim=-1)
    exact = gradient(model, probabilities[0])
    assert F.cosine_similarity(sampled, exact, dim=0) > 0.95


# --- advantages


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0, 0, 1], [1, 0, 0, 0]])
    expected = torch.tensor([[1, -1, -1, 1], [3**0.5, *[-(3**-0.5)] * 3]])
    torch.testing.assert_close(group_advantages(rewards), expected)
    plain = torch.tensor([[0.5, -0.5, -0.5, 0.5], [0.75, -0.25, -0.25, -0.25]])
    torch.testing.assert_close(group_advantages(rewards, scale=False), plain)


def test_no_reward_leaks_into_another_group():
    torch.manual_seed(0)
    rewards = torch.rand(5, 8)
    alone = torch.cat([group_advantages(row[None]) for row in rewards])
    torch.testing.assert_close(group_advantages(rewards), alone)
    other = rewards.clone()
    other[0] = 1 - other[0]
    torch.testing.assert_close(group_advantages(other)[1:], alone[1:])


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.3, 1 / 3])
@pytest.mark.parametrize("scale", [True, False])
def test_a_group_of_equals_gives_no_gradient_and_no_nan(reward, scale):
    advantages = group_advantages(torch.full((2, 7), reward), scale).flatten()
    assert advantages.isfinite().all() and advantages.abs().max() < 1e-3
    if reward in (0, 1):
        model = toy()
        token_ids, targets, _ = sample_groups(
            model, AB, [[0], [1]], 7, max_new_tokens=4
        )
        loss, _ = policy_loss(model, token_ids, targets, advantages.double())
        assert loss == 0 and gradient(model, loss).abs().max() == 0


# --- the loss


def slow_loss(new, targets, advantages, old, reference, clip, beta, per):
    """The loss in plain loops, from log-probabilities."""
    total, tokens = 0.0, 0
    for i, advantage in enumerate(advantages.tolist()):
        gains = []
        for t in range(targets.shape[1]):
            if targets[i, t] == IGNORE:
                continue
            ratio = (new[i, t] - old[i, t]).exp()
            low, high = 1 - clip[0], 1 + clip[1]
            bounded = min(max(ratio.item(), low), high)
            gain = min(ratio.item() * advantage, bounded * advantage)
            u = (reference[i, t] - new[i, t]).exp().item()
            gains.append(gain - beta * (u - torch.tensor(u).log().item() - 1))
        tokens += len(gains)
        total -= sum(gains) / (len(gains) if per == "answer" else 1)
    n = len(advantages)
    return total, {"answer": n, "token": tokens}.get(per) or n * per


@pytest.mark.parametrize("per", ["answer", "token", 5])
@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.1, 0.4)])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_loss_is_that_of_plain_loops(per, clip, beta):
    model = toy(2)
    torch.manual_seed(1)
    token_ids, targets, _ = sample_groups(
        model, AB, [[0], [1, 0, 1]], 6, max_new_tokens=5
    )
    advantages = torch.randn(12).double()
    new = token_log_probs(model, token_ids, targets).detach()
    old = new + 0.4 * torch.randn(new.shape)
    reference = new + 0.4 * torch.randn(new.shape)
    loss, count = policy_loss(
        model, token_ids, targets, advantages, old, reference, clip=clip, beta=beta,
        per=per,
    )  # fmt: skip
    expected = slow_loss(new, targets, advantages, old, reference, clip, beta, per)
    assert loss.item() == pytest.approx(expected[0], abs=1e-6) and count == expected[1]


def test_the_clipped_have_no_gradient():
    model, targets = toy(3), torch.tensor([[IGNORE, 0]])
    token_ids = torch.tensor([[0, 1]])
    now = token_log_probs(model, token_ids, targets).detach()
    for ratio, advantage, moves in [
        (1.5, 1, False), (1.5, -1, True), (0.5, 1, True), (0.5, -1, False), (1, 1, True)
    ]:  # fmt: skip
        old = now - torch.tensor(float(ratio)).log()
        sign = torch.tensor([float(advantage)]).double()
        loss, _ = policy_loss(model, token_ids, targets, sign, old)
        assert (gradient(model, loss).abs().max() > 1e-6) == moves


def test_the_kl_estimate_has_the_exact_mean_and_is_never_negative():
    torch.manual_seed(0)
    model_p, reference_p = torch.randn(2, 6).double().log_softmax(dim=-1)
    less = reference_p - model_p
    estimate = less.exp() - less - 1
    exact = F.kl_div(reference_p, model_p, reduction="sum", log_target=True)
    assert estimate.min() >= 0
    torch.testing.assert_close((model_p.exp() * estimate).sum(), exact)
    # And it is what the loss takes off: one token each, all of them, by probability.
    model = toy(4, vocab_size=6)
    token_ids, targets = collate([([0, 1], [i]) for i in range(6)])
    now = token_log_probs(model, token_ids, targets)[:, -1].detach()
    reference = torch.zeros(6, 2).double()
    reference[:, -1] = reference_p
    parts = []
    for i in range(6):
        row = slice(i, i + 1)
        none = torch.zeros(1).double()
        loss, _ = policy_loss(
            model, token_ids[row], targets[row], none, None, reference[row], beta=1.0
        )
        parts.append(loss.detach())
    exact = F.kl_div(reference_p, now, reduction="sum", log_target=True)
    torch.testing.assert_close((now.exp() * torch.stack(parts)).sum(), exact)


def test_the_kl_estimate_has_the_gradient_of_the_other_divergence():
    """As the notebook warns: differentiated with the drawn tokens held fixed."""
    torch.manual_seed(0)
    logits, other = torch.randn(2, 6).double()
    logits.requires_grad_()
    model_p, reference_p = logits.log_softmax(dim=-1), other.log_softmax(dim=-1)
    less = reference_p - model_p
    estimate = (model_p.exp().detach() * (less.exp() - less - 1)).sum()
    found = torch.autograd.grad(estimate, logits, retain_graph=True)[0]
    forward, reverse = (
        torch.autograd.grad(
            F.kl_div(a, b, reduction="sum", log_target=True), logits, retain_graph=True
        )[0]
        for a, b in ((reference_p, model_p), (model_p, reference_p))
    )
    torch.testing.assert_close(found, reverse)
    assert (found - forward).abs().max() > 0.1


def test_the_groups_own_mean_shrinks_the_gradient_and_does_not_turn_it():
    """All pairs of draws from a bandit: half of the exact gradient, for two answers."""
    logits = torch.tensor([0.3, -0.5, 0.9]).double().requires_grad_()
    rewards = torch.tensor([1.0, 0.0, 0.3]).double()
    log_p = logits.log_softmax(dim=-1)
    exact = torch.autograd.grad(
        (log_p.exp() * rewards).sum(), logits, retain_graph=True
    )[0]
    mean = 0.0
    for pair in itertools.product(range(3), repeat=2):
        advantages = group_advantages(rewards[list(pair)][None], scale=False)[0]
        chance = log_p[list(pair)].sum().exp().detach()
        mean = mean + chance * (advantages * log_p[list(pair)]).mean()
    found = torch.autograd.grad(mean, logits)[0]
    torch.testing.assert_close(found, exact / 2)


def test_log_probabilities_are_those_of_the_logits():
    model = toy(5)
    token_ids, targets = collate([([0], [1, 0, 2]), ([1, 1, 0], [2])])
    assert targets.tolist() == [[1, 0, 2], [IGNORE, IGNORE, 2]]
    all_log_probs = model(token_ids).log_softmax(dim=-1)
    for i, t in [(0, 0), (0, 1), (0, 2), (1, 2)]:
        found = token_log_probs(model, token_ids, targets)[i, t]
        torch.testing.assert_close(found, all_log_probs[i, t, targets[i, t]])
    assert token_log_probs(model, token_ids, targets)[1, :2].tolist() == [0, 0]


# --- sampling


def test_groups_are_what_generate_writes_for_each_prompt_alone():
    model = toy(6)
    prompts = [[0], [1, 0, 1], [0, 0]]
    token_ids, targets, texts = sample_groups(
        model, AB, prompts, 2, max_new_tokens=5, temperature=0.0
    )
    assert len(texts) == 6
    for n, prompt in enumerate(p for p in prompts for _ in range(2)):
        alone = generate(model, torch.tensor([prompt]), 5, stop_token=2)[0].tolist()
        new = alone[len(prompt) :]
        new = new[: new.index(2) + 1] if 2 in new else new
        counted = targets[n][targets[n] != IGNORE].tolist()
        assert counted == new
        assert texts[n] == AB.decode([i for i in new if i != 2])
        row = [*prompt, *new][:-1]
        assert token_ids[n, : len(row)].tolist() == row
        assert targets[n, : len(prompt) - 1].tolist() == [IGNORE] * (len(prompt) - 1)


def test_batches_are_written_by_the_model_as_it_is_then():
    model, log = toy(7), []
    torch.manual_seed(0)
    batches = group_batches(
        model, AB, [["a"], ["b"]], lambda q, t: float(len(t) > 2), log,
        encode=AB.encode_ordinary, size=4, max_new_tokens=4,
    )  # fmt: skip
    next(batches)
    assert len(log) == 1 and log[0]["rewards"].shape == (1, 4)
    with torch.no_grad():
        model.out_head.weight.zero_()
        model.tok_emb.weight.zero_()
        for p in model.parameters():
            p.zero_()
    model.final_norm.bias.data += 1
    model.out_head.weight.data[1] += 100  # from now on it says b, and nothing else
    next(batches)
    assert log[1]["texts"] == ["bbbb"] * 4


def test_a_batch_is_used_again_with_the_old_log_probabilities():
    model, log = toy(8), []
    torch.manual_seed(0)
    batches = group_batches(
        model, AB, [["a", "b"]], lambda q, t: float("a" in t), log,
        encode=AB.encode_ordinary, size=4, reuse=2, max_new_tokens=4,
        reference=token_log_probs,
    )  # fmt: skip
    trainer = Trainer(model, TrainConfig(2, 1e-2, weight_decay=0.0), policy_loss)
    first, second = batches
    assert len(log) == 1 and all(map(torch.equal, first, second))
    torch.testing.assert_close(first[3], first[4])
    now = token_log_probs(model, *first[:2]).detach()
    torch.testing.assert_close(first[3], now)
    trainer.train_step([tuple(part for part in first)])
    assert not torch.allclose(token_log_probs(model, *first[:2]), now)
    trainer.train_step([second])


# --- what ships


def test_the_runs_are_of_this_split_and_all_learn():
    test = draw_sums(300, "test", 0)
    with (CHAPTER / "reasoning_runs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["test_sha256"] for row in rows} == {
        sha256("\n".join(test).encode()).hexdigest()[:16]
    }
    for loss, seed in [*(("GRPO", seed) for seed in "123"), ("Dr. GRPO", "1")]:
        run = [
            r
            for r in rows
            if (r["loss"], r["seed"]) == (loss, seed) and float(r["rate"]) == 5e-5
        ]
        assert float(run[-1]["greedy"]) - float(run[0]["greedy"]) >= 50


def test_the_start_can_do_both_and_prefers_the_short_way():
    model, tokenizer = load_model(CHAPTER / "sums_gpt")
    size = sum(p.stat().st_size for p in (CHAPTER / "sums_gpt").iterdir())
    assert size < 1.8e6
    some = draw_sums(100, "validation", 0)
    shares = []
    for write in (False, True):
        begins = [q[:2] if write else "" for q in some]
        prompts = [
            tokenizer.encode_ordinary(q + b) for q, b in zip(some, begins, strict=True)
        ]
        texts = sample_groups(
            model, tokenizer, prompts, 1, max_new_tokens=44, temperature=0.0
        )[2]
        shares.append(sum(map(checked_sum, some, texts)) / 100)
        assert all(("=" in text) == write for text in texts)
    assert shares[0] < 0.4 < 0.6 < shares[1]


def test_the_figure_has_the_numbers_of_its_cell():
    svg = (CHAPTER / "figures" / "group.svg").read_text(encoding="utf-8")
    found = re.findall(r"<text[^>]*>(.*?)</text>", svg)
    found = [text.replace("&gt;", ">") for text in found]
    (question,) = [text for text in found if text.endswith("=")]
    answers = [text for text in found if re.search(r">\d+$", text)]
    rewards = [checked_sum(question, answer) for answer in answers]
    after = found[found.index(answers[0]) :]
    assert [float(t) for t in after if t in ("0", "1")] == rewards
    advantages = group_advantages(torch.tensor([rewards]))[0]
    drawn = [float(t.replace("−", "-")) for t in after if re.fullmatch("[+−]1", t)]
    torch.testing.assert_close(advantages, torch.tensor(drawn))
    group = torch.tensor(rewards)
    assert f"mean {group.mean():.1f}" in found
    assert f"deviation {group.std(correction=0):.1f}" in found
    cells = json.loads((CHAPTER / "ch07_reasoning.ipynb").read_text("utf-8"))["cells"]
    code = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    assert all(f'"{answer}"' in code for answer in answers)


def test_the_explorer_shows_each_answer_with_its_reward():
    rewards = torch.tensor([[1.0, 0], [0.5, 0]])
    texts = ["1+2=3,3+4=7>7", "<b>8", ">9", ""]
    page = Page(explore_samples(["1+2+4=", "9="], texts, rewards))
    assert page.rows == [
        ["", "1", "2"], ["1+2+4=", "1+2=3,3…", "<b>8"], ["9=", ">9", ""]
    ]  # fmt: skip
    assert page.told == [
        "reward 1: 1+2=3,3+4=7>7", "reward 0: <b>8", "reward 0.5: >9", "reward 0: "
    ]  # fmt: skip
    assert page.caption == "2 questions, 2 answers to each" and "b" not in page.tags
