"""What every notebook needs: seeds, a device, one look, a check of the machine."""

import math
import random
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from shared.support import COURSE
from shared.support.course import (
    COLORS,
    get_device,
    set_seed,
    show,
    use_course_style,
)

sys.path.append(str(COURSE / "ch01_intro"))
from environment import check_environment


def draw() -> list[float]:
    return [random.random(), *np.random.rand(3), *torch.rand(3).tolist()]


def test_a_seed_repeats_all_three_generators():
    set_seed(5)
    first = draw()
    assert all(a != b for a, b in zip(first, draw(), strict=True))
    set_seed(5)
    assert draw() == first
    set_seed(6)
    assert all(a != b for a, b in zip(first, draw(), strict=True))


def test_the_device_is_the_one_that_was_asked_for(monkeypatch):
    for name in "meta", "cpu":
        monkeypatch.setenv("LLM_COURSE_DEVICE", name)
        assert get_device() == torch.device(name)


@pytest.mark.parametrize("setting", [None, ""])
def test_without_a_wish_the_device_is_the_fastest(monkeypatch, setting):
    if setting is None:
        monkeypatch.delenv("LLM_COURSE_DEVICE", raising=False)
    else:
        monkeypatch.setenv("LLM_COURSE_DEVICE", setting)
    found = torch.accelerator.current_accelerator(check_available=True)
    device = get_device()
    assert device.type == ("cpu" if found is None else found.type)
    assert torch.zeros(1, device=device).item() == 0


def test_environment_check_says_what_is_missing(tmp_path, capsys):
    pins = tmp_path / "requirements.txt"
    pins.write_text("# comment\nno-such-package==1.0\ntorch==0.0.1\n-e .\n")
    problems = check_environment(pins)
    missing, other, *_ = problems
    assert missing.startswith("no-such-package is missing")
    assert "python -m pip install no-such-package==1.0" in missing
    assert other.startswith("torch is ") and "made with 0.0.1" in other
    printed = capsys.readouterr().out
    assert missing in printed and other in printed and torch.__version__ in printed


def test_environment_check_names_neither_what_fits_nor_builds_of_it(tmp_path, capsys):
    version = torch.__version__.split("+")[0]  # 2.13.0+cpu is as good as 2.13.0
    pins = tmp_path / "requirements.txt"
    pins.write_text(f"torch=={version}\n")
    assert not [line for line in check_environment(pins) if "torch" in line]
    assert "torch is" not in capsys.readouterr().out


def test_by_default_the_pins_are_the_courses_own(capsys):
    course = check_environment(COURSE / "requirements.txt")
    assert [p for p in check_environment() if "memory" not in p] == [
        p for p in course if "memory" not in p
    ]


def test_plots_get_the_courses_colours():
    with mpl.rc_context():
        use_course_style()
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"][0] == "#0072B2"
    meanings = ["tokens", "weights", "attention", "loss"]
    okabe_ito = ["#0072B2", "#009E73", "#E69F00", "#D55E00"]
    assert [COLORS[meaning] for meaning in meanings] == okabe_ito


def test_a_notebook_shows_figures_whatever_mplbackend_says(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    begin = "import matplotlib.pyplot as plt\n"
    begin += "from shared.support.course import use_course_style\n"
    show = "use_course_style()\nplt.plot([1])\nplt.show()"
    cells = [begin + show]
    cells += [f"plt.switch_backend({name!r})\n{show}" for name in ("svg", "pdf", "agg")]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    for cell in notebook.cells:
        shown = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        assert len(shown) == 1, cell


@pytest.mark.parametrize(
    ("values", "names", "printed"),
    [
        ([[1.0, -0.001], [2.25, -10]], {}, "[[  1.00   0.00]\n [  2.25 -10.00]]"),
        ([1.0, -math.inf], {"columns": ["a", "it"]}, "   a   it\n1.00 -inf"),
        ([0.5, 2], {"rows": ["a", "it"]}, "a  0.50\nit 2.00"),
        (
            [[True, False]],
            {"rows": ["Ivy"], "columns": ["x", "y"]},
            "     x  y\nIvy  1  0",
        ),
        (3.14159, {}, "3.14"),
    ],
)
def test_show_prints_rounded_numbers(values, names, printed, capsys):
    show(torch.tensor(values), **names)
    assert capsys.readouterr().out == printed + "\n"


@pytest.mark.parametrize("value", [0.125, 0.12515, -0.12485, 7.005])
def test_show_refuses_what_could_be_rounded_otherwise(value):
    with pytest.raises(ValueError, match=r"entry \[1, 0\] is -?[07]\.\d+, which"):
        show([[1.0, 2], [value, 3]])
    show([[1.0, 2], [value, 3]], 1)


@pytest.mark.parametrize("value", [0.1253, 0.1247, -0.1253])
def test_show_takes_what_every_cpu_rounds_alike(value, capsys):
    show([value])
    assert capsys.readouterr().out == f"[{value:.2f}]\n"
