"""Chapter 6: LoRA against the arithmetic, and adapters that are kept and exchanged."""

import contextlib
import copy
import html
import json
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import TOKENIZER, build
from torch import nn

from shared.classification import Classifier
from shared.gpt_model import GPTConfig, count_parameters
from shared.llama_model import SMOLLM2_135M, LlamaConfig, LlamaModel
from shared.lora import (
    TARGETS,
    LoRALayer,
    apply_lora,
    load_adapter,
    lora_layers,
    merge_lora,
    save_adapter,
    without_adapter,
)
from shared.pretraining import TrainConfig, Trainer, load_model, save_model, train
from shared.support import COURSE

GPT = GPTConfig(300, 40, emb_dim=16, n_heads=2, n_layers=3, qkv_bias=True)
LLAMA = LlamaConfig(300, 40, 16, 2, n_kv_heads=1, n_layers=3, hidden_dim=24)
each_model = pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])
IDS = torch.arange(24).view(2, 12)


def shaken(model, seed: int = 1):
    """Give every B of a model's adapters random values."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.B.normal_(std=0.3)
    return model


def test_a_layer_is_the_sum_of_two_products():
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    layer, x = LoRALayer(linear, rank=2, alpha=3), torch.randn(5, 7, 6)
    assert torch.equal(layer(x), linear(x)) and not layer.linear.weight.requires_grad
    assert layer.A.shape == (2, 6) and layer.B.shape == (4, 2)
    assert layer.A.abs().sum() > 0
    nn.init.normal_(layer.B)
    whole = linear.weight + 1.5 * layer.B @ layer.A
    by_hand = F.linear(x, whole, linear.bias)
    torch.testing.assert_close(layer(x), by_hand, atol=1e-5, rtol=1e-5)
    layer.on = False
    assert torch.equal(layer(x), linear(x))


@each_model
def test_a_model_is_unchanged_at_first_and_trains_only_adapters(config):
    model = build(config)
    before = model(IDS).detach()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    assert apply_lora(model, rank=3) is model
    assert torch.equal(model(IDS), before)
    assert len(lora_layers(model)) == 4 * 3
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"A", "B"}
    assert len(trained) == 24
    trainer = Trainer(model, TrainConfig(2, learning_rate=1e-2))
    batch = (IDS[:, :-1], IDS[:, 1:])
    assert len(list(train(trainer, [batch] * 2, progress=False))) == 2
    for name, p in model.named_parameters():
        if not p.requires_grad:
            assert torch.equal(p, weights[name.replace(".linear.", ".")]), name
    assert not torch.allclose(model(IDS), before, atol=1e-4)
    with without_adapter(model):
        assert torch.equal(model(IDS), before)
    assert not torch.allclose(model(IDS), before, atol=1e-4)


def test_adapters_come_back_after_an_error():
    model = shaken(apply_lora(build(GPT)))
    with pytest.raises(KeyError), without_adapter(model):
        raise KeyError
    assert all(layer.on for layer in lora_layers(model).values())


@each_model
def test_merged_equals_unmerged(config):
    model = shaken(apply_lora(build(config), rank=4, alpha=6))
    names = set(build(config).state_dict())
    with torch.no_grad():
        before = model(IDS)
        merged = merge_lora(copy.deepcopy(model))
        torch.testing.assert_close(merged(IDS), before, atol=1e-4, rtol=0)
        cached = merged(IDS, merged.new_cache(2, 12))
        torch.testing.assert_close(cached, before, atol=1e-4, rtol=0)
    assert set(merged.state_dict()) == names and not lora_layers(merged)


def test_other_targets():
    model = build(LLAMA)
    apply_lora(model, targets=("gate", "W_value"))
    assert {n.rpartition(".")[2] for n in lora_layers(model)} == {"gate", "W_value"}
    with pytest.raises(ValueError, match="already"):
        apply_lora(model)
    with pytest.raises(ValueError, match="no linear layer named W_quer"):
        apply_lora(build(LLAMA), targets=("W_quer",))


def test_rank_8_trains_under_two_percent_of_smollm2():
    with torch.device("meta"):
        classifier = Classifier(LlamaModel(SMOLLM2_135M), n_trained=30)
        apply_lora(classifier, rank=8)
    classifier.model.out_head.requires_grad_(True)
    share = count_parameters(classifier, trainable=True) / count_parameters(classifier)
    assert 0.005 < share < 0.02


@each_model
def test_adapters_are_kept_and_exchanged(config, tmp_path):
    model = apply_lora(build(config), rank=2, alpha=5)
    with torch.no_grad():
        plain, outputs = model(IDS), []
        for n in (1, 2):
            save_adapter(shaken(model, n), tmp_path / str(n))
            outputs.append(model(IDS))
        assert not torch.equal(outputs[1], plain)
        assert torch.equal(load_adapter(model, tmp_path / "1")(IDS), outputs[0])
        assert torch.equal(load_adapter(model, tmp_path / "2")(IDS), outputs[1])
        # Gets its layers from the settings
        fresh = load_adapter(build(config), tmp_path / "2")
        assert torch.equal(fresh(IDS), outputs[1])
        other_alpha = apply_lora(build(config), rank=2, alpha=1)
        assert torch.equal(load_adapter(other_alpha, tmp_path / "1")(IDS), outputs[0])
    assert not fresh.tok_emb.weight.requires_grad
    size = sum(file.stat().st_size for file in (tmp_path / "1").iterdir())
    assert size < 4 * count_parameters(fresh)


def test_a_classifier_keeps_its_head_with_the_adapter(tmp_path):
    classifier = Classifier(build(LLAMA), n_trained=3)
    apply_lora(classifier)
    classifier.model.out_head.requires_grad_(True)
    save_adapter(shaken(classifier), tmp_path / "a")
    lengths = torch.tensor([12, 7])
    base = build(LLAMA)
    torch.manual_seed(7)  # else the new head would start with the same numbers
    again = load_adapter(Classifier(base, n_trained=3), tmp_path / "a")
    assert again.model.out_head.weight.requires_grad  # and would be saved again
    with torch.no_grad():
        assert torch.equal(again(IDS, lengths), classifier(IDS, lengths))


def test_an_adapter_for_another_model(tmp_path):
    save_adapter(shaken(apply_lora(build(GPT))), tmp_path / "gpt")
    save_adapter(shaken(apply_lora(build(LLAMA), rank=2)), tmp_path / "two")
    less = build(LlamaConfig(300, 40, 16, 2, n_kv_heads=1, n_layers=2, hidden_dim=24))
    more = build(LlamaConfig(300, 40, 16, 2, n_kv_heads=1, n_layers=4, hidden_dim=24))
    adapted = shaken(apply_lora(build(GPT), rank=4), 5)
    for model, folder, number in (
        (build(LLAMA), "gpt", 6),  # it has fewer heads of keys and of values
        (less, "two", 8),
        (more, "two", 8),
        (adapted, "two", 6),
    ):
        with torch.no_grad():
            before, n_layers = model(IDS), len(lora_layers(model))
            message = f"{folder} holds no .* for another model: {number} tensors differ"
            with pytest.raises(ValueError, match=message):
                load_adapter(model, tmp_path / folder)
            assert torch.equal(model(IDS), before)
            assert len(lora_layers(model)) == n_layers


def everything(model) -> list:
    """Return all that must be as before when an adapter was refused."""
    modules = [(name, id(m), m.training) for name, m in model.named_modules()]
    flags = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    layers = lora_layers(model).values()
    return [modules, flags, [(layer.scale, layer.on) for layer in layers]]


def settings_of(**change) -> str:
    return json.dumps({"rank": 2, "alpha": 4, "targets": ["W_query"]} | change)


WRONG_SETTINGS = [
    "[]", "3", "{}", settings_of(rank=0), settings_of(rank="2"), settings_of(rank=1.5),
    settings_of(rank=2, targets="W_query"), settings_of(targets=["nothing"]),
    settings_of(alpha=None), settings_of(rank=10**12), settings_of(targets=None),
    settings_of(), json.dumps({"name": "x", "labels": ["a", "b"], "n_trained": 1}),
]  # fmt: skip


@pytest.mark.parametrize("settings", WRONG_SETTINGS)
@pytest.mark.parametrize("rank", [None, 2, 4])
def test_an_adapter_that_is_refused_leaves_all_as_it_was(settings, rank, tmp_path):
    save_adapter(apply_lora(build(LLAMA), rank=2), tmp_path / "a")
    (tmp_path / "a" / "settings.json").write_text(settings)
    model = build(LLAMA)
    if rank:
        shaken(apply_lora(model, rank)).final_norm.requires_grad_(True)
    model.blocks[1].train()
    before = everything(model)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / 'a'))} holds no"):
        load_adapter(model, tmp_path / "a")
    assert everything(model) == before


@pytest.mark.parametrize("targets", [("W_query",), ("gate", "W_value"), TARGETS])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_an_adapter_takes_the_place_of_any_other(rank, targets, tmp_path):
    ours = shaken(apply_lora(build(LLAMA), rank, 3, targets))
    save_adapter(ours, tmp_path / "a")
    model = shaken(apply_lora(build(LLAMA), rank=2), 5).eval()
    with torch.no_grad():
        assert torch.equal(load_adapter(model, tmp_path / "a")(IDS), ours(IDS))
    assert lora_layers(model).keys() == lora_layers(ours).keys()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in ours.named_parameters() if p.requires_grad}
    assert not any(part.training for part in model.modules())


def test_a_trainer_goes_on_with_an_adapter_that_was_loaded_again(tmp_path):
    model = shaken(apply_lora(build(LLAMA), rank=2))
    save_adapter(model, tmp_path / "a")
    trainer = Trainer(model, TrainConfig(1))
    load_adapter(model, tmp_path / "a")
    before = [layer.B.clone() for layer in lora_layers(model).values()]
    trainer.train_step([(IDS[:, :-1], IDS[:, 1:])])
    after = [layer.B for layer in lora_layers(model).values()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("frozen", ["", ".A", ".B"])
def test_all_adapters_are_kept_or_none(frozen, tmp_path):
    model = shaken(apply_lora(build(LLAMA), rank=2))
    save_adapter(model, tmp_path / "a")
    for name, p in model.named_parameters():
        p.requires_grad_(p.requires_grad and bool(frozen) and not name.endswith(frozen))
    if frozen:  # only A, or only B, was trained
        save_adapter(shaken(model, 3), tmp_path / "a")
    else:
        with pytest.raises(ValueError, match="the adapters are frozen"):
            save_adapter(model, tmp_path / "a")
    with torch.no_grad():
        again = load_adapter(build(LLAMA), tmp_path / "a")
        assert torch.equal(again(IDS), model(IDS))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": ("nothing",)}, ValueError, "no linear layer named nothing"),
        ({"targets": ()}, ValueError, "no linear layer"),
        ({"targets": "W_query"}, TypeError, "targets .* collection, .* 'W_query'"),
        ({"rank": 0}, ValueError, "rank .* at least 1, got 0"),
        ({"rank": -8}, ValueError, "rank .* at least 1, got -8"),
        ({"rank": 2.0}, ValueError, "rank .* whole number .* got 2.0"),
        ({"alpha": "16"}, TypeError, "str"),
    ],
)
def test_adapters_that_cannot_be_change_nothing(options, error, message):
    model = build(LLAMA)
    before = everything(model)
    with pytest.raises(error, match=message):
        apply_lora(model, **options)
    assert everything(model) == before


@pytest.mark.parametrize("targets", [("out_head",), ("out_head", "up"), ("W_key",)])
@each_model
def test_merging_writes_into_no_layer_that_shares(config, targets, tmp_path):
    if "up" in targets and config is GPT:
        targets = ("out_head", "expand")
    model = shaken(apply_lora(build(config), targets=targets))
    embedding = model.tok_emb.weight.clone()
    with torch.no_grad():
        before = model(IDS)
        torch.testing.assert_close(merge_lora(model)(IDS), before, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.tok_emb.weight, embedding)
    save_model(model, tmp_path / "m", TOKENIZER)  # with a head of its own, if it has
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "m")[0](IDS), model(IDS))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_without_adapters_inside_without_adapters(depth):
    model = shaken(apply_lora(build(LLAMA)))
    list(lora_layers(model).values())[3].on = False  # by hand
    before = everything(model)
    with torch.no_grad(), contextlib.ExitStack() as outer:
        plain = build(LLAMA)(IDS)
        for _ in range(depth):
            outer.enter_context(without_adapter(model))
        with pytest.raises(KeyError), without_adapter(model):
            raise KeyError
        assert torch.equal(model(IDS), plain)
    assert everything(model) == before


def test_an_adapter_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="settings.json is missing"):
        load_adapter(build(GPT), tmp_path / "nothing")
    with pytest.raises(ValueError, match="no adapters"):
        save_adapter(build(GPT), tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


# --- the figures carry the numbers of the cells beside them ---------------------------


def numbers_in(figure: str) -> list[float]:
    """Return the texts of a figure that are numbers, in their order."""
    path = COURSE / "ch06_classification" / "figures" / f"{figure}.svg"
    svg = html.unescape(path.read_text(encoding="utf-8")).replace("\u2212", "-")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    return [float(text) for text in texts if re.fullmatch(r"-?[\d.]+", text)]


def test_the_figure_of_a_layer_with_lora():
    x, W = torch.tensor([1.0, 2, 1]), torch.tensor([[1.0, 0, 2], [0, 1, 0], [1, 1, 0]])
    layer = LoRALayer(nn.Linear(3, 3, bias=False), rank=1, alpha=2)
    layer.linear.weight.data = W
    layer.A.data = torch.tensor([[1.0, 0, 1]])
    layer.B.data = torch.tensor([[0.5], [-1], [0]])
    A, B, y = layer.A, layer.B, layer(x)
    parts = [x, W, W @ x, A, A @ x, B, y - W @ x, y]
    expected = torch.cat([part.flatten() for part in parts]).tolist()
    assert numbers_in("lora_by_hand") == expected


def test_the_figure_of_rank_one():
    B, A = torch.tensor([[1.0], [2], [0], [2]]), torch.tensor([[2.0, 0, 1, 2]])
    expected = torch.cat([part.flatten() for part in (B, A, B @ A)]).tolist()
    assert numbers_in("low_rank") == expected
