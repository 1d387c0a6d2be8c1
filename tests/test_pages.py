"""What the pages beside the notebooks say of them is so: links, numbers, messages."""

import importlib
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TOKENIZER, build
from torch import nn

from shared.classification import load_messages
from shared.gpt_model import GPTConfig
from shared.instruction import encode_entries, load_conversations
from shared.lora import apply_lora, load_adapter, save_adapter
from shared.pretraining import IGNORE, TrainConfig, Trainer, generate
from shared.support import COURSE
from shared.text_data import GPTDataset, create_dataloader

NOTEBOOKS = sorted(COURSE.glob("ch*/ch??_*.ipynb"))
TEACHING = sorted(COURSE.glob("ch*/ch??_teaching.md"))
PAGES = [COURSE / "README.md", *sorted(COURSE.glob(".site/*.md")), *TEACHING]
PLAN = re.compile(r"^\| (\d+) \| (.*?) \|", re.MULTILINE)
BOARD, ERRORS = "On the board", "Errors they meet"
EXERCISES = "Which exercises for whom"
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
each_teaching_page = pytest.mark.parametrize("path", TEACHING, ids=lambda p: p.stem)


@cache
def cells(path: Path) -> list[dict]:
    """Return a notebook's cells, the source of each as one string."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found]


@cache
def headings(path: Path) -> list[tuple[str, str]]:
    """Return (id of its cell, heading) of all headings of a notebook."""
    texts = [cell for cell in cells(path) if cell["cell_type"] == "markdown"]
    heading = re.compile(r"^#+ (.*)", re.MULTILINE)
    return [(c["id"], h) for c in texts for h in heading.findall(c["source"])]


@cache
def sections(path: Path) -> dict[str, list[str]]:
    """Return the headings `##` under which each cell of a notebook stands."""
    found, last = {}, ""
    for cell in cells(path):
        own = re.findall(r"^## (.*)", cell["source"], re.MULTILINE)
        if cell["cell_type"] != "markdown":
            own = []
        found[cell["id"]] = own or [last]
        last = [last, *own][-1]
    return found


def number(heading: str) -> str:
    """Return the number with which a heading begins, or nothing."""
    found = re.match(r"\d+\.\d+[a-z]?(?= )", heading)
    return found[0] if found else ""


def numbers(chapter: Path, exercises: bool) -> set[str]:
    """Return the numbers of a chapter's sections, or of its exercises."""
    paths = [path for path in NOTEBOOKS if path.parent == chapter]
    paths = [path for path in paths if path.stem.endswith("_exercises") == exercises]
    return {number(h) for path in paths for _, h in headings(path)} - {""}


def parts(path: Path) -> dict[str, str]:
    """Return the parts of a page by their headings."""
    text = path.read_text(encoding="utf-8")
    return dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.M | re.S))


def slug(heading: str) -> str:
    """Return the name that a heading has as the end of an address."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@each_page
def test_a_link_leads_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for words, target in re.findall(r"\[([^\[\]]*)\]\(([^()\s]+)\)", text):
        file, _, place = target.partition("#")
        if ":" in file:
            continue
        assert file, f"{target}: name its notebook, for readers without the site"
        to = (path.parent / file).resolve()
        assert to.is_file(), target
        if not place:
            continue
        slugs = {slug(heading) for _, heading in headings(to)}
        assert place in {*sections(to), *slugs}, target
        for named in re.findall(r"\d+\.\d+", words) if place in sections(to) else []:
            assert named in map(number, sections(to)[place]), (words, target)


@pytest.mark.parametrize("name", ["three-hours", "weekend", "know-pytorch", "changes"])
def test_a_link_to_a_section_says_its_number(name):
    text = (COURSE / f".site/{name}.md").read_text(encoding="utf-8")
    link = r"\[([^\[\]]*)\]\(([^()\s]*\.ipynb)#(ch\w+-\w+)\)( \((?:[^()]*, )?\d+\.\d+)?"
    for words, file, cell, behind in re.findall(link, text):
        (named,) = sections((COURSE / ".site" / file).resolve())[cell][:1]
        if number(named):
            said = re.findall(r"\d+\.\d+", f"{words}{behind}")
            assert said == [number(named)], words


@each_teaching_page
def test_a_plan_fills_its_lessons(path):
    text = path.read_text(encoding="utf-8")
    plan = [(int(n), row) for n, row in PLAN.findall(text)]
    assert sum(n for n, _ in plan) == 90
    (halves,) = re.findall(r"\*\*2 × 45\.\*\* (.*)", text)
    if line := re.match(r"The line is after (\d+\.\d+)", halves):
        rows = [n for n, (_, row) in enumerate(plan) if f"[{line[1]} " in row]
        assert sum(n for n, _ in plan[: rows[0] + 1]) == 45
    else:
        for half in re.split(r"(?:Second|Then):? ", halves):
            assert sum(map(int, re.findall(r"\((\d+)\)", half))) == 45, half
    for lesson in re.findall(r"\*\*[^*]*, 45\.\*\* (.*)", text):
        assert sum(map(int, re.findall(r"\((\d+)\)", lesson))) == 45, lesson


@each_teaching_page
def test_a_section_has_the_title_that_the_plan_gives_it(path):
    links = re.findall(
        r"\[(\d+\.\d+) ([^\[\]]+)\]\(([^()#]+)#", path.read_text("utf-8")
    )
    assert len(links) > 5
    for named, title, file in links:
        found = dict(
            h.split(" ", 1) for _, h in headings(path.parent / file) if number(h)
        )
        assert found[named].startswith(title), (named, title)


@each_teaching_page
def test_what_is_named_exists(path):
    """Numbers are exercises in their own part, elsewhere sections, unless it is said.

    On the board, and in messages and code, numbers are numbers.
    """
    chapter = str(int(path.stem[2:4]))
    known = {
        "section": numbers(path.parent, exercises=False),
        "exercise": numbers(path.parent, exercises=True),
    }
    for title, text in parts(path).items():
        if title in (BOARD, ERRORS):
            text = "\n".join(re.findall(r"(?:section|exercise) \d+\.\d+\w?", text))
        usual = "exercise" if title == EXERCISES else "section"
        text = re.sub(r"`[^`]+`|\([^()\s]+\)", "", text)
        said = r"(?:\b(section|exercise)s? )?(?<![\d.,])(%s\.\d+[a-z]?)(?![\d.]*\d)"
        for kind, named in re.findall(said % chapter, text):
            assert named in known[kind or usual], (title, kind or usual, named)
    exercises = path.parent / f"{path.stem[:4]}_exercises.ipynb"
    titles = {heading for _, heading in headings(exercises)}
    for title in re.findall(r"\*([A-Z][^*]+)\*(?!\*)", parts(path)[EXERCISES]):
        assert title in titles, title


def corpus(chapter: Path) -> str:
    """Return what a reader of a chapter meets: cells, outputs, programs, modules."""
    texts = []
    for path in NOTEBOOKS:
        for cell in cells(path) if path.parent == chapter else []:
            texts.append(cell["source"])
            for output in cell.get("outputs", []):
                shown = output.get("text") or output.get("data", {}).get("text/plain")
                texts.append("".join(shown or output.get("evalue", "")))
    files = [*chapter.glob("*.py"), *COURSE.glob("shared/**/*.py")]
    texts += [file.read_text(encoding="utf-8") for file in files]
    return "\n".join([*texts, *(str(p) for p in chapter.iterdir())])


@each_teaching_page
def test_code_stands_in_the_chapter(path):
    about = parts(path)
    about.pop(ERRORS)
    text = path.read_text(encoding="utf-8").partition("\n## ")[0]
    for code in re.findall(r"`([^`]+)`", "\n".join([text, *about.values()])):
        words = code.replace("\\|", "|").removeprefix("python ")
        assert words.strip() in corpus(path.parent), code


# ------------------------------------------------------------------ printed messages


def in_place(folder: Path) -> None:
    weights = torch.zeros(2, requires_grad=True)
    weights -= 1


def twice(folder: Path) -> None:
    loss = torch.ones(2, requires_grad=True).square().sum()
    loss.backward()
    loss.backward()


class Bare(nn.Module):
    """A module whose author forgot the first line of __init__."""

    def __init__(self):
        self.layer = nn.Linear(2, 2)


def scores(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def ids(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def small(context: int = 16, vocab_size: int = 50):
    config = GPTConfig(vocab_size, context, emb_dim=8, n_heads=2, n_layers=2)
    return build(config)


def not_finite(folder: Path) -> None:
    model = small()
    with torch.no_grad():
        model.tok_emb.weight.fill_(float("nan"))
    trainer = Trainer(model, TrainConfig(max_steps=1))
    trainer.train_step([(ids(1, 4), ids(1, 4))])


def talks(folder: Path) -> None:
    (folder / "talks.json").write_text('[{"turns": ["hello"]}]', encoding="utf-8")
    load_conversations(folder / "talks.json")


def long_talk(folder: Path) -> None:
    encode_entries([{"turns": ["why? " * 99, "so"]}], TOKENIZER, 160, "plain")


def nothing_counts(folder: Path) -> None:
    trainer = Trainer(small(), TrainConfig(max_steps=1))
    trainer.train_step([(ids(1, 4), ids(1, 4) + IGNORE)])


def messages(folder: Path, text: str) -> None:
    (folder / "messages.tsv").write_text(text, encoding="utf-8")
    load_messages(folder / "messages.tsv")


def foreign_adapter(folder: Path) -> None:
    save_adapter(apply_lora(small()), folder / "adapter")
    other = GPTConfig(50, 16, emb_dim=12, n_heads=2, n_layers=2)
    load_adapter(build(other), folder / "adapter")


def foreign_id(folder: Path) -> None:
    F.embedding(ids(1) + 5, scores(2, 2))


# What a class does wrong, chapter by chapter; each is handed an empty folder.
MISTAKES: dict[str, list[Callable[[Path], object]]] = {
    "ch01": [
        lambda folder: scores(6, 6)[[0, 1], [0, 1, 2]],
        lambda folder: torch.bincount(torch.tensor([33])).view(6, 6),
        in_place,
        twice,
        lambda folder: torch.zeros(1, requires_grad=True).numpy(),
    ],
    "ch02": [
        lambda folder: TOKENIZER.to_tiktoken().encode("<|endoftext|>"),
        lambda folder: GPTDataset([1, 2, 3, 4], 4),
        lambda folder: create_dataloader(list(range(9)), 8, 4),
        foreign_id,
    ],
    "ch03": [
        lambda folder: scores(2, 3, 4) @ scores(2, 3, 4).T,
        lambda folder: scores(3, 3).masked_fill_(torch.ones(3, 3), 0.0),
        lambda folder: scores(2, 3, 4).transpose(1, 2).view(2, 12),
        in_place,
    ],
    "ch04": [
        lambda folder: small(1024)(ids(5)),
        foreign_id,
        lambda folder: setattr(small().config, "dropout", 0.1),
        lambda folder: small()(ids(1, 1), small().new_cache(2, 4)),
        lambda folder: Bare(),
        lambda folder: F.cross_entropy(scores(2, 8, 100), ids(2, 8)),
    ],
    "ch05": [
        lambda folder: F.cross_entropy(scores(8, 64, 1000), ids(8, 64)),
        twice,
        not_finite,
        lambda folder: TrainConfig(max_steps=1, warmup_steps=5),
        lambda folder: generate(small(), ids(3), 1),
        lambda folder: generate(small(160), ids(1, 170), 1),
        foreign_id,
    ],
    "ch06": [
        lambda folder: F.cross_entropy(scores(3, 2), scores(3)),
        lambda folder: F.cross_entropy(scores(3, 2), ids(3) + 2),
        lambda folder: messages(folder, "spam,win a prize\n"),
        lambda folder: messages(folder, "spam\twin a prize\nham\tsee you\n"),
        lambda folder: apply_lora(apply_lora(small())),
        foreign_adapter,
    ],
    "ch07": [
        lambda folder: TOKENIZER.encode("<|endoftext|>"),
        talks,
        long_talk,
        nothing_counts,
        lambda folder: load_adapter(apply_lora(small()), folder / "adapter"),
    ],
}


@pytest.mark.filterwarnings("error:the prompt has")  # a warning, no error
@pytest.mark.filterwarnings("ignore:The use of `x.T`")
@each_teaching_page
def test_a_message_is_what_a_reader_sees(path, tmp_path):
    known = [corpus(path.parent)]
    for mistake in MISTAKES[path.stem[:4]]:
        with pytest.raises(Exception) as caught:
            mistake(tmp_path)
        known.append(f"{caught.typename}: {caught.value}")
    for line in re.findall(
        r"^\* (?=`)((?:`[^`]+`|[^`:])+):", parts(path)[ERRORS], re.M
    ):
        for message in re.findall(r"`([^`]+)`", line):
            pieces = [piece.strip() for piece in message.split("…")]
            assert any(all(p in text for p in pieces) for text in known), message


# -------------------------------------------------------------------- since the first


def named(cell: str) -> tuple[list[str], list[str]]:
    """Return the modules or files, and the names in them, of a cell of the table."""
    places, _, names = cell.partition(":")
    return re.findall(r"`([^`]+)`", places), re.findall(r"`([^`]+)`", names)


def has(place: str, name: str) -> bool:
    """Return whether a module offers a name, or a program defines it."""
    if "/" in place:
        text = (COURSE / place).read_text(encoding="utf-8")
        return bool(re.search(rf"^(def|class) {name}\b", text, re.MULTILINE))
    return hasattr(importlib.import_module(place), name)


def test_what_has_changed_has_changed():
    page = (COURSE / ".site/changes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`shared\..*?) \| (.*?) \|$", page, re.MULTILINE)
    assert len(rows) > 10
    for was, now in rows:
        (old, gone), (new, names) = named(was), named(now)
        for place in old if not gone else []:
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(place)
        for place in new:
            assert all(has(place, name) for name in names or gone), now
            assert names or gone or importlib.import_module(place)
        for name in gone:
            try:
                public = importlib.import_module(old[0]).__all__
            except ModuleNotFoundError:
                public = []
            assert name not in public, name
