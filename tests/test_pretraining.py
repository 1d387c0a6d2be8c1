"""Chapter 5: loss, optimizers, training, sampling, checkpoints, against torch."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import shared.pretraining
from shared.gpt_model import GPTConfig, GPTModel
from shared.llama_model import LlamaConfig, LlamaModel
from shared.pretraining import (
    IGNORE,
    TrainConfig,
    Trainer,
    evaluate,
    generate,
    learning_rate_at,
    load_checkpoint,
    load_model,
    make_optimizers,
    sample_next,
    save_checkpoint,
    save_model,
    set_weights,
    summed_loss,
    train_model,
    weights_of,
    write_folder,
)
from shared.text_data import BPETokenizer

GPT = GPTConfig(50, 16, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.1)
LLAMA = LlamaConfig(50, 16, 16, 2, 1, 2, hidden_dim=24)
each_model = pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])
few = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)


def build(config=GPT, seed: int = 0):
    torch.manual_seed(seed)
    return (GPTModel if isinstance(config, GPTConfig) else LlamaModel)(config)


def batch(i: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(i)
    rows = torch.randint(50, (3, 13), generator=generator)
    return rows[:, :-1], rows[:, 1:]


def states(trainer: Trainer) -> list[torch.Tensor]:
    """All numbers that a trainer holds."""
    found = list(trainer.model.state_dict().values())
    for optimizer in trainer.optimizers:
        for _, state in sorted(optimizer.state_dict()["state"].items()):
            found += [torch.as_tensor(value) for _, value in sorted(state.items())]
    return found


# --- loss -----------------------------------------------------------------------------


def test_loss_by_hand_and_ignored_targets():
    model = build().eval()
    inputs, targets = batch(0)
    targets = targets.clone()
    targets[0, 3:] = IGNORE
    log_p = model(inputs).log_softmax(dim=-1)
    expected = -sum(
        log_p[b, t, targets[b, t]]
        for b, t in itertools.product(range(3), range(12))
        if targets[b, t] != IGNORE
    )
    torch.testing.assert_close(summed_loss(model, inputs, targets), expected)
    assert evaluate(model, [(inputs, targets)]) == pytest.approx(
        expected.item() / 27, rel=1e-5
    )


def test_evaluation_weighs_tokens_alike_and_restores_the_mode():
    model = build().train()
    inputs, targets = batch(1)
    whole = evaluate(model, [(inputs, targets)])
    split = evaluate(model, [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])])
    assert whole == pytest.approx(split, rel=1e-5) and model.training
    with pytest.raises(ValueError, match="no targets"):
        evaluate(model, [])


# --- settings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"max_steps": 0}, {"warmup_steps": 11}, {"warmup_steps": -1}, {"accumulate": 0},
        {"learning_rate": 0.0}, {"learning_rate": 1.5}, {"learning_rate": float("nan")},
        {"final_share": 1.1}, {"max_grad_norm": 0.0}, {"weight_decay": -0.1},
    ],
)  # fmt: skip
def test_settings_out_of_range(change):
    with pytest.raises(ValueError, match=r"-?\d|nan"):
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
    model.out_head = nn.Linear(16, 3)
    optimizers = make_optimizers(model, TrainConfig(1, muon=muon, weight_decay=0.3))
    assert [type(o).__name__ for o in optimizers] == (
        ["Muon", "AdamW"] if muon else ["AdamW"]
    )
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


# --- training -------------------------------------------------------------------------


def test_one_step_equals_torch_by_hand():
    config = TrainConfig(5, learning_rate=0.01, weight_decay=0.0, max_grad_norm=0.5)
    ours, theirs = build().eval(), build().eval()
    optimizer = torch.optim.AdamW(
        theirs.parameters(), 0.01, (0.9, 0.95), weight_decay=0.0
    )
    trainer = Trainer(ours, config)
    for step in range(3):
        inputs, targets = batch(step)
        loss = F.cross_entropy(theirs(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in theirs.parameters()))
        for p in theirs.parameters():
            p.grad *= min(1.0, 0.5 / norm.item())
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, config)
        optimizer.step()
        assert trainer.train_step([(inputs, targets)]) == pytest.approx(
            loss.item(), rel=1e-5
        )
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert trainer.step == 3 and trainer.tokens == 3 * 36


@pytest.mark.parametrize("muon", [False, True])
def test_training_learns_and_records(muon):
    model = build()
    seen, steps = [], []
    settings = TrainConfig(40, learning_rate=0.01, muon=muon, warmup_steps=3)
    history = train_model(
        model, lambda i: batch(i % 4), settings, val_batches=[batch(0)], eval_every=15,
        on_eval=lambda trainer, record: seen.append(record["step"]),
        on_step=lambda trainer, record: steps.append(record["loss"]), progress=False,
    )  # fmt: skip
    assert (
        seen == [15, 30, 40] == [record["step"] for record in history]
        and len(steps) == 40
    )
    assert history[-1]["val_loss"] < 0.8 * steps[0]
    assert history[-1]["train_loss"] == pytest.approx(sum(steps[30:]) / 10)
    assert history[-1]["tokens"] == 40 * 36 and model.training


def test_accumulated_batches_count_every_token_alike():
    inputs, targets = batch(0)
    targets = targets.clone()
    targets[0, 2:] = IGNORE
    one, other = (Trainer(build().eval(), TrainConfig(3)) for _ in range(2))
    whole = one.train_step([(inputs, targets)])
    parts = other.train_step(
        [(inputs[n : n + 1], targets[n : n + 1]) for n in range(3)]
    )
    assert whole == pytest.approx(parts, rel=1e-5)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_not_a_number_stops_and_changes_nothing():
    trainer = Trainer(build().eval(), TrainConfig(5))
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
    with pytest.raises(ValueError, match="no target counts"):
        trainer.train_step([(batch(0)[0], torch.full((3, 12), IGNORE))])


# --- sampling -------------------------------------------------------------------------


def test_draws_follow_the_probabilities():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    rows = logits.expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    for temperature in (0.5, 1.0, 3.0):
        ids = sample_next(rows, temperature, generator=generator)
        shares = ids.bincount(minlength=4) / 20_000
        torch.testing.assert_close(
            shares, (logits / temperature).softmax(0), atol=0.02, rtol=0
        )
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
    assert set(sample_next(rows, top_k=k, generator=generator).tolist()) <= set(
        order[:k]
    )
    kept, reached = [], 0.0
    for token in order:  # by the definition, one after the other
        if reached >= p - 1e-6:
            break
        kept.append(token)
        reached += logits.softmax(0)[token].item()
    assert set(sample_next(rows, top_p=p, generator=generator).tolist()) <= set(kept)
    assert (
        sample_next(rows[:1], top_k=1).item()
        == sample_next(rows[:1], top_p=1e-9).item()
        == order[0]
    )


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0}, {"temperature": float("nan")},
        {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1},
    ],
)  # fmt: skip
def test_bad_sampling_settings(options):
    with pytest.raises(ValueError, match="temperature|top_p"):
        sample_next(torch.zeros(1, 4), **options)


@each_model
def test_generate(config):
    model = build(config).train()
    prompt = torch.randint(50, (3, 4))
    expected = prompt
    for _ in range(8):  # greedy, by hand
        with torch.no_grad():
            logits = model.eval()(expected)
        expected = torch.cat([expected, logits[:, -1:].argmax(dim=-1)], dim=1)
    model.train()
    seen = []
    ids = generate(model, prompt, 8, on_token=lambda new: seen.append(new.clone()))
    assert model.training and torch.equal(ids, expected)
    assert torch.equal(torch.stack(seen, dim=1), ids[:, 4:])
    for use_cache in (True, False):
        drawn = [
            generate(
                model, prompt, 8, temperature=1.3, top_p=0.9, use_cache=use_cache,
                generator=torch.Generator().manual_seed(seed),
            )
            for seed in (1, 1, 2)
        ]  # fmt: skip
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert generate(model, prompt, 99).shape == (3, 16)  # the context is full
    assert torch.equal(generate(model, prompt, 0), prompt)
    with pytest.raises(ValueError, match="17 tokens"):
        generate(model, torch.zeros(1, 17, dtype=torch.int64), 1)


@each_model
def test_rows_stop_one_by_one(config):
    model = build(config).eval()
    prompt = torch.randint(50, (4, 3))
    free = generate(
        model, prompt, 12, temperature=2.0, generator=torch.Generator().manual_seed(5)
    )
    stop = free[0, 5].item()  # the first row stops at its third new token at the latest
    ids = generate(
        model, prompt, 12, temperature=2.0, stop_token=stop,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    for row, before in zip(ids[:, 3:].tolist(), free[:, 3:].tolist(), strict=True):
        end = row.index(stop) + 1 if stop in row else len(row)
        assert row[:end] == before[:end] and set(row[end:]) <= {stop}
    alone = generate(model, prompt[:1], 12, stop_token=stop)
    assert alone.shape[1] <= 16


# --- files ----------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("tie", [True, False])
def test_models_come_back(config, tie, tmp_path):
    model = build(replace(config, tie_weights=tie)).eval()
    tokenizer = BPETokenizer.train("to be or not to be", 262)
    save_model(model, tmp_path / "m", tokenizer)
    again = load_model(tmp_path / "m").eval()
    assert again.config == model.config and type(again) is type(model)
    assert (again.out_head.weight is again.tok_emb.weight) == tie
    ids = batch(0)[0]
    assert torch.equal(again(ids), model(ids))
    assert BPETokenizer.load(tmp_path / "m" / "tokenizer.json").encode(
        "to be"
    ) == tokenizer.encode("to be")
    save_model(model, tmp_path / "m")  # over the old one
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    assert not (tmp_path / "m" / "tokenizer.json").exists()


def test_models_that_cannot_be_loaded(tmp_path):
    save_model(build(), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="cannot load a model from"):
        load_model(tmp_path / "m")
    file.unlink()
    with pytest.raises(ValueError, match="model.safetensors"):
        load_model(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"kind": "Unknown"}')
    with pytest.raises(ValueError, match="Unknown"):
        load_model(tmp_path / "m")
    with pytest.raises(ValueError, match="nowhere"):
        load_model(tmp_path / "nowhere")


def test_weights_that_do_not_fit_are_listed():
    model = build()
    weights = weights_of(model)
    weights["extra"] = torch.zeros(1)
    weights["final_norm.bias"] = torch.zeros(3)
    del weights["final_norm.weight"]
    before = model.pos_emb.weight.clone()
    weights["pos_emb.weight"] = torch.zeros_like(before)
    with pytest.raises(ValueError) as error:
        set_weights(model, weights)
    for part in (
        "missing final_norm.weight",
        "unknown extra",
        r"final_norm.bias is (3,), not (16,)",
    ):
        assert part in str(error.value)
    assert torch.equal(model.pos_emb.weight, before)


@pytest.mark.parametrize("muon", [False, True])
@each_model
def test_resumed_equals_uninterrupted_bit_for_bit(config, muon, tmp_path):
    settings = TrainConfig(12, muon=muon, warmup_steps=2, accumulate=2)

    def until(trainer, step):
        trainer.model.train()
        while trainer.step < step:
            trainer.train_step([batch(2 * trainer.step), batch(2 * trainer.step + 1)])
        return trainer

    torch.manual_seed(7)
    whole = until(Trainer(build(config), settings), 12)
    torch.manual_seed(7)
    save_checkpoint(until(Trainer(build(config), settings), 5), tmp_path / "step-5")
    torch.manual_seed(99)
    resumed = Trainer(build(config, seed=3), settings)
    load_checkpoint(resumed, tmp_path / "step-5")
    assert resumed.step == 5 and resumed.tokens == 5 * 72
    until(resumed, 12)
    for a, b in zip(states(whole), states(resumed), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_of_another_configuration_or_damaged(tmp_path):
    trainer = Trainer(build(), TrainConfig(9))
    trainer.train_step([batch(0)])
    save_checkpoint(trainer, tmp_path / "c")
    other = Trainer(build(replace(GPT, emb_dim=32)), TrainConfig(9, weight_decay=0.2))
    before = [tensor.clone() for tensor in states(other)]
    with pytest.raises(
        ValueError, match="emb_dim is 16, here 32; weight_decay is 0.1, here 0.2"
    ):
        load_checkpoint(other, tmp_path / "c")
    fresh = Trainer(build(seed=4), TrainConfig(9))
    unchanged = [tensor.clone() for tensor in states(fresh)]
    for name in ("model.safetensors", "training.safetensors"):
        shutil.copytree(tmp_path / "c", tmp_path / "d", dirs_exist_ok=True)
        content = bytearray((tmp_path / "d" / name).read_bytes())
        content[-3] ^= 1
        (tmp_path / "d" / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"damaged: {name}"):
            load_checkpoint(fresh, tmp_path / "d")
        (tmp_path / "d" / name).write_bytes(content[:50])
        with pytest.raises(ValueError, match=f"damaged: {name}"):
            load_checkpoint(fresh, tmp_path / "d")
        (tmp_path / "d" / name).unlink()
        with pytest.raises(ValueError, match="not a complete checkpoint"):
            load_checkpoint(fresh, tmp_path / "d")
    record = tmp_path / "c" / "checkpoint.json"
    record.write_text(json.dumps({"step": 1}))
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        load_checkpoint(fresh, tmp_path / "c")
    for trainer, expected in ((other, before), (fresh, unchanged)):
        assert trainer.step == 0
        for a, b in zip(states(trainer), expected, strict=True):
            assert torch.equal(a, b)


def test_a_full_disk_leaves_the_old_folder(tmp_path, monkeypatch):
    model = build().eval()
    save_model(model, tmp_path / "m")
    real = shared.pretraining.save_file

    def full(tensors, path):
        real({name: tensors[name] for name in list(tensors)[:1]}, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared.pretraining, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(build(seed=9), tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    ids = batch(0)[0]
    assert torch.equal(load_model(tmp_path / "m").eval()(ids), model(ids))


def test_write_folder_removes_leftovers(tmp_path):
    (tmp_path / ".a.new").mkdir()
    (tmp_path / ".a.new" / "half").write_text("x")
    write_folder(tmp_path / "a", lambda new: (new / "whole").write_text("y"))
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == [
        "a",
        "a/whole",
    ]


def test_write_folder_brings_back_what_a_failed_rename_moved_away(
    tmp_path, monkeypatch
):
    folder = tmp_path / "a"
    write_folder(folder, lambda new: (new / "file").write_text("first"))
    real = Path.rename

    def fails_at_last(self, target):
        if self.name == ".a.new":
            raise OSError("no more")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fails_at_last)
    with pytest.raises(OSError, match="no more"):
        write_folder(folder, lambda new: (new / "file").write_text("second"))
    assert (folder / "file").read_text() == "first"
    monkeypatch.undo()
    folder.rename(tmp_path / ".a.old")  # as after a kill between the two renames
    with pytest.raises(ZeroDivisionError):
        write_folder(folder, lambda new: 1 / 0)
    assert (folder / "file").read_text() == "first"
    (folder / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"other files \(thesis.txt\)"):
        write_folder(folder, lambda new: (new / "file").touch())
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a",
        "file",
        "thesis.txt",
    ]
