"""Sample the pairs of ch07_preference.ipynb from the tuned model: preferences.json.

    python ch07_instruction/pairs.py

First the adapter of ch07_instruction.ipynb (run that notebook before) is made small
enough to be kept with the course: of each B A the four largest singular values stay, in
half precision. That is the folder tuned/, the model that ch07_preference.ipynb starts
from. Without an adapter, tuned/ is taken as it is.

Then this model answers each question that can be checked four times. A pair is made of
what it said itself, in its own words: chosen is the shortest of the right answers,
rejected is a wrong one, or, where all were right, a much longer one. A question without
two such answers gives none. Pairs of training questions are for training, pairs of test
questions for testing; each names the adapter by the start of its hash. It takes some
five minutes on 2 CPU cores.
"""

import json
from hashlib import sha256
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from shared.gpt_model import Decoder
from shared.instruction import encode_turns, is_right, load_conversations
from shared.lora import load_adapter, merge_lora
from shared.pretrained_weights import end_token, load_pretrained
from shared.pretraining import sample_next
from shared.support import write_whole
from shared.support.course import get_device
from shared.support.files import read_trained, save_trained
from shared.text_data import Tokenizer

HERE = Path(__file__).resolve().parent
RANK = 4  # of the small adapter
N_SAMPLES, N_TOKENS, TEMPERATURE = 4, 24, 0.8
N_QUESTIONS = {"train": 34, "test": 12}  # of each kind
MUCH_LONGER = 1.5  # times the words of the chosen answer


def smaller(folder: Path, rank: int, target: Path) -> None:
    """Write the adapter in `folder` to `target`, with a smaller rank, in float16."""
    stored, settings = read_trained(folder)
    kept = {}
    scale = settings["alpha"] / settings["rank"]
    for name in sorted(
        {name.removesuffix(".A") for name in stored if name[-2:] == ".A"}
    ):
        product = scale * stored[f"{name}.B"] @ stored[f"{name}.A"]
        U, S, V = torch.svd_lowrank(product, settings["rank"], niter=4)
        root = S[:rank].sqrt()
        kept[f"{name}.A"] = (root[:, None] * V[:, :rank].T).half()
        kept[f"{name}.B"] = (U[:, :rank] * root).half()
    settings |= {"rank": rank, "alpha": float(rank)}  # a scale of 1
    save_trained(kept, target, settings)


@torch.no_grad()
def sample(
    model: Decoder, tokenizer: Tokenizer, prompts: list[str], seed: int
) -> list[list[str | None]]:
    """Return N_SAMPLES answers to each prompt, None for one that did not end.

    A prompt is read once; then its row of the cache is repeated for each answer.
    """
    end = end_token(tokenizer)
    generator = torch.Generator(model.device).manual_seed(seed)
    encoded = [torch.tensor(encode_turns([text], tokenizer)[0]) for text in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    answers: list[list[str | None]] = [[] for _ in prompts]
    for start in range(0, len(order), 24):
        some = order[start : start + 24]
        rows = [encoded[i].to(model.device) for i in some]
        token_ids = pad_sequence(rows, batch_first=True, padding_side="left")
        n_prompt = token_ids.shape[1]
        pad_left = torch.tensor([n_prompt - len(row) for row in rows]).to(model.device)
        cache = model.new_cache(len(rows), n_prompt + N_TOKENS, pad_left)
        hidden = model.hidden_states(token_ids, cache)[:, -1]
        hidden = hidden.repeat_interleave(N_SAMPLES, dim=0)
        cache.pad_left = pad_left.repeat_interleave(N_SAMPLES)
        for layer in cache.layers:
            layer.keys = layer.keys.repeat_interleave(N_SAMPLES, dim=0)
            layer.values = layer.values.repeat_interleave(N_SAMPLES, dim=0)
        new: list[torch.Tensor] = []
        while len(new) < N_TOKENS:
            logits = model.out_head(hidden).float()
            new.append(sample_next(logits, TEMPERATURE, generator=generator))
            if (torch.stack(new) == end).any(dim=0).all():
                break
            hidden = model.hidden_states(new[-1][:, None], cache)[:, -1]
        texts = [row[: row.index(end)] if end in row else [] for row in
                 torch.stack(new, dim=1).tolist()]  # fmt: skip
        for n, text in enumerate(texts):
            answers[some[n // N_SAMPLES]].append(tokenizer.decode(text).strip() or None)
        print(f"{start + len(some):4} of {len(order)} questions", flush=True)
    return answers


def pair(answers: list[str | None], entry: dict) -> dict | None:
    """Return the chosen and the rejected of some answers, None where there are none."""
    ended = [answer for answer in answers if answer]
    right = sorted(
        (a for a in ended if is_right(a, entry)), key=lambda a: len(a.split())
    )
    wrong = [answer for answer in ended if not is_right(answer, entry)]
    if not right:
        return None
    chosen, longest = right[0], right[-1]
    if wrong:
        return {"chosen": chosen, "rejected": wrong[0], "why": "wrong"}
    if len(longest.split()) >= MUCH_LONGER * len(chosen.split()):
        return {"chosen": chosen, "rejected": longest, "why": "long"}
    return None


def main() -> None:
    """Make the small adapter and the pairs."""
    if (HERE / "adapter").exists():
        smaller(HERE / "adapter", RANK, HERE / "tuned")
    name = sha256((HERE / "tuned" / "trained.safetensors").read_bytes()).hexdigest()
    model, tokenizer = load_pretrained()
    merge_lora(load_adapter(model, HERE / "tuned"))
    model.to(get_device(), torch.bfloat16)  # half the memory, and quicker
    entries = []
    checked = [
        e for e in load_conversations() if "accepted" in e and len(e["turns"]) == 2
    ]
    for split, most in N_QUESTIONS.items():
        for kind in sorted({e["kind"] for e in checked}):
            some = [e for e in checked if (e["split"], e["kind"]) == (split, kind)]
            entries += some[:most]
    answers = sample(model, tokenizer, [e["turns"][0] for e in entries], 123)
    pairs = []
    for said, entry in zip(answers, entries, strict=True):
        if found := pair(said, entry):
            about = {"kind": entry["kind"], "split": entry["split"]}
            pairs.append(
                {"prompt": entry["turns"][0], **found, **about, "adapter": name[:12]}
            )
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in pairs)
    write_whole(HERE / "preferences.json", f"[\n{lines}\n]\n")
    print(len(pairs), "pairs")


if __name__ == "__main__":
    main()
