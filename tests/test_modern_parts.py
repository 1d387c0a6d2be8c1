"""`ch04_modern_parts.ipynb`: its figures, and the program whose results it shows."""

import ast
import importlib.util
import re
from collections import Counter
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from shared.gpt_model import count_parameters
from shared.llama_model import SwiGLU

CHAPTER = Path(__file__).resolve().parent.parent / "ch04_gpt_model"
CELLS = nbformat.read(CHAPTER / "ch04_modern_parts.ipynb", as_version=4).cells
SOURCES = {cell.id: cell.source for cell in CELLS if cell.cell_type == "code"}


def load_program():
    spec = importlib.util.spec_from_file_location("mixture", CHAPTER / "mixture.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


mixture = load_program()


def run_cells(*ids: str) -> dict:
    """Return what cells of the notebook define, after its imports."""
    names: dict = {}
    for cell_id in ("ch04m-001", *ids):
        exec(SOURCES[cell_id].replace("use_course_style()", ""), names)
    return names


def numbers_in(figure: str, name: str) -> list[float]:
    """Return the numbers in the texts of this class, in their order."""
    svg = (CHAPTER / "figures" / figure).read_text("utf-8").replace("−", "-")
    texts = re.findall(rf'class="{name}">([^<]*)<', svg)
    return [float(n) for text in texts for n in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_the_figure_of_the_mixture_shows_the_cells_numbers():
    names = run_cells("ch04m-003", "ch04m-005")
    assert numbers_in("mixture.svg", "scores") == names["scores"].flatten().tolist()
    shown = numbers_in("mixture.svg", "weight")
    assert Counter(shown) == Counter(
        round(w, 2) for w in names["weights"].flatten().tolist()
    )


def test_the_figure_of_the_delta_rule_shows_the_cells_numbers():
    names = run_cells("ch04m-049")
    state = torch.zeros(2, 3)
    for n, (key, value) in enumerate(names["sentences"]):
        says = key @ state
        state = state + torch.outer(key, value - says)
        rows = {"said": says, "correction": value - says}
        rows |= {"Ivy": names["ivy"] @ state, "Tom": names["tom"] @ state}
        for name, row in rows.items():
            shown = numbers_in("delta_rule.svg", name)[3 * n : 3 * n + 3]
            assert shown == pytest.approx(row.tolist(), abs=0.005), (n, name)


def test_the_figure_of_the_windows_shows_the_cells_numbers():
    names = run_cells("ch04m-028")
    kept = [names["kept"](10, window) for window in names["windows"]]
    assert numbers_in("window_layers.svg", "kept") == kept


def test_the_program_trains_what_the_notebook_explains():
    for cell_id, name in [
        ("ch04m-009", "MixtureOfExperts"),
        ("ch04m-016", "imbalance"),
    ]:
        trees = [
            ast.parse(source)
            for source in (
                SOURCES[cell_id],
                (CHAPTER / "mixture.py").read_text("utf-8"),
            )
        ]
        taught, trained = (
            next(ast.unparse(n) for n in tree.body if getattr(n, "name", "") == name)
            for tree in trees
        )
        assert taught == trained


def test_a_mixture_is_the_weighted_sum_of_its_chosen_experts():
    torch.manual_seed(0)
    layer, x = mixture.MixtureOfExperts(6, 10, 5, 2), torch.randn(3, 4, 6)
    chances = (x @ layer.router.weight.T).softmax(dim=-1)  # over all five
    best, chosen = chances.topk(2)
    weights = best / best.sum(dim=-1, keepdim=True)  # the same as over the chosen
    every = torch.stack([expert(x) for expert in layer.experts], dim=-2)
    index = chosen[..., None].expand(-1, -1, -1, 6)
    expected = (weights[..., None] * every.gather(-2, index)).sum(dim=-2)
    assert_close(layer(x), expected)
    assert mixture.MixtureOfExperts(6, 10, 4, 2)(x[:0]).shape == (0, 4, 6)


def test_imbalance_by_hand():
    chosen = torch.tensor([[0], [0], [0], [1]])
    scores = torch.tensor([[0.5, 0.5]] * 4).log()
    assert_close(mixture.imbalance(scores, chosen), torch.tensor(1.0))
    scores = torch.tensor([[0.9, 0.1]] * 4).log()  # 2 (0.75 · 0.9 + 0.25 · 0.1)
    assert_close(mixture.imbalance(scores, chosen), torch.tensor(1.4))


def test_models_that_are_compared_are_of_equal_size():
    models = {kind: mixture.build(kind, 100) for kind in mixture.KINDS}
    active = {kind: mixture.active_parameters(m) for kind, m in models.items()}
    routers = 2 * mixture.EMB_DIM * mixture.EXPERTS
    assert active["small"] + routers == active["mixture"]
    assert active["mixture"] == active["balanced mixture"]
    total = {kind: count_parameters(m) for kind, m in models.items()}
    assert total["large"] + routers == total["mixture"]
    part = mixture.mixtures(models["mixture"])[0]
    assert isinstance(part.experts[0], SwiGLU)


def test_the_results_are_complete():
    rows = pd.read_csv(mixture.PATH)
    assert list(rows.columns) == mixture.COLUMNS
    found = rows[["optimizer", "model", "seed"]].itertuples(index=False, name=None)
    assert list(found) == mixture.RUNS
    assert rows["tokens"].nunique() == rows["floor"].nunique() == 1
    assert (rows["val_loss"] > rows["floor"]).all()
    liked = pd.read_csv(mixture.TOKENS, keep_default_na=False)
    assert len(liked) == 60
    assert (liked.filter(like="expert").sum(axis=1) - 1).abs().max() < 0.01
