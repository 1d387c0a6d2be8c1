"""Count the right answers of SmolLM2 in float32 and in 8 bits, over the same questions.

    python tests/benchmarks/bench_eight_bits.py

The plain model and the one tuned in chapter 7 (its folder `tuned`), on the closed test
entries and the two-turn talks of ch07_instruction/conversations.json. chat.py would
write in 8 bits by default if the 95 % interval of the difference lay above -5 points.
"""

import torch

from shared.classification import paired_difference
from shared.gpt_model import Decoder
from shared.instruction import answer_all, is_right, load_conversations
from shared.lora import load_adapter, merge_lora
from shared.pretrained_weights import load_pretrained
from shared.quantization import quantize
from shared.support import COURSE
from shared.text_data import Tokenizer


def right(model: Decoder, tokenizer: Tokenizer, entries: list[dict]) -> torch.Tensor:
    """Return which of the last answers to entries are right: (N,) bool."""
    answers = answer_all(model, tokenizer, [entry["turns"][:-1] for entry in entries])
    pairs = zip(answers, entries, strict=True)
    return torch.tensor([is_right(answer, entry) for answer, entry in pairs])


def main() -> None:
    test = [e for e in load_conversations() if e["split"] == "test" and "accepted" in e]
    sets = {
        "closed": [entry for entry in test if entry["kind"] != "talk"],
        "talks": [entry for entry in test if entry["kind"] == "talk"],
    }
    for title in ("plain", "tuned"):
        model, tokenizer = load_pretrained()
        if title == "tuned":
            load_adapter(model, COURSE / "ch07_instruction" / "tuned")
            merge_lora(model)
        before = {name: right(model, tokenizer, sets[name]) for name in sets}
        quantize(model)
        for name, entries in sets.items():
            after = right(model, tokenizer, entries)
            print(f"{title}, {name}: float32 {int(before[name].sum())}, ", end="")
            print(f"8 bits {int(after.sum())} of {len(entries)}: ", end="")
            print(paired_difference(after, before[name]), flush=True)


if __name__ == "__main__":
    main()
