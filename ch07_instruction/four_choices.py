"""Answer the course's four-choice questions by likelihood; write four_choices.csv.

    python ch07_instruction/four_choices.py
    python ch07_instruction/four_choices.py --model gpt2-124m --template plain

The first command asks three models: SmolLM2 as it came, the same with the adapter of
ch07_instruction.ipynb (run the notebook first), and the Tiny Tales GPT. A row of the
file is a question, and 1 stands where the right choice is the likeliest. It takes some
three minutes on 2 CPU cores. The second command prints the share of another model.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from shared.gpt_model import Decoder
from shared.instruction import likelihoods
from shared.lora import load_adapter
from shared.pretrained_weights import load_pretrained
from shared.support import COURSE, read_json, write_whole
from shared.support.course import get_device
from shared.text_data import Tokenizer

HERE = Path(__file__).resolve().parent
PATH = HERE / "four_choices.csv"


def answers(
    model: Decoder, tokenizer: Tokenizer, questions: list[dict], template: str
) -> list[int]:
    """Return 1 for each question whose right choice is the likeliest, 0 for others.

    Each choice gets a full stop: a chat model ends no answer without one.
    """
    entries = [
        {"turns": [question["question"], f"{choice}."]}
        for question in questions
        for choice in question["choices"]
    ]
    found = likelihoods(model.to(get_device()), tokenizer, entries, template)
    chosen = found.view(-1, 4).argmax(dim=1)
    right = torch.tensor([q["answer"] for q in questions], device=chosen.device)
    return (chosen == right).int().tolist()


def main(argv: list[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a name for load_pretrained, or a folder")
    parser.add_argument("--template", default="chatml", help="chatml or plain")
    settings = parser.parse_args(argv)
    questions = read_json(HERE / "four_choices.json")
    if settings.model:
        model, tokenizer = load_pretrained(settings.model)
        right = answers(model, tokenizer, questions, settings.template)
        print(f"{settings.model}: {sum(right)} of {len(right)} right")
        return
    table = {"kind": [question["kind"] for question in questions]}
    model, tokenizer = load_pretrained()
    table["plain"] = answers(model, tokenizer, questions, "chatml")
    load_adapter(model, HERE / "adapter")
    table["tuned"] = answers(model, tokenizer, questions, "chatml")
    tales = load_pretrained(COURSE / "ch05_pretraining" / "tiny_tales_gpt")
    table["tiny tales"] = answers(*tales, questions, "plain")
    write_whole(PATH, pd.DataFrame(table).to_csv(index=False))


if __name__ == "__main__":
    main()
