"""Talk to a chat model in the terminal, or on a page in the browser.

    python ch07_instruction/chat.py
    python ch07_instruction/chat.py --adapter ch07_instruction/adapter
    python ch07_instruction/chat.py --model runs/my_model --temperature 0.7
    python ch07_instruction/chat.py --web --adapter ch07_instruction/adapter
    python ch07_instruction/chat.py --eight-bits

Each piece of an answer is shown as it is generated. An empty message, Ctrl-D or Ctrl-C
ends the conversation. What cannot be loaded is named, and the exit status is then 1.

With --web, a page on this machine lets you choose between the model and each adapter,
and programs that speak OpenAI's interface can ask at the address /v1 beside it (see
server.py). Ctrl-C ends it.

With --eight-bits, the model takes a third of the memory, and writes faster where the
CPU has what chapter 5's quantize needs. On this course's questions it then gives fewer
right answers, so that is not the default: see tests/benchmarks/bench_eight_bits.py.
"""

import argparse
import asyncio
import math
import sys
from functools import partial

from server import serve

from shared.lora import load_adapter, merge_lora
from shared.pretrained_weights import Conversation, load_pretrained
from shared.quantization import quantize
from shared.support.course import get_device


def temperature(text: str) -> float:
    """Return a temperature from the command line: a number, 0 or more."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"it must be 0 or more, got {text}")
    return value


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the settings of a command line, by default this program's."""
    parser = argparse.ArgumentParser("chat.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        metavar="NAME",
        help="a name of chapter 5 (smollm2-360m, ...), or a folder of save_model",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="FOLDER",
        help="a fine-tuned adapter of this model; with --web, also several of them",
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=0.0,
        metavar="T",
        help="0, the default, takes the likeliest token each time",
    )
    parser.add_argument(
        "--eight-bits", action="store_true", help="a smaller, faster, worse model"
    )
    parser.add_argument(
        "--web", action="store_true", help="a page in your browser, here only"
    )
    parser.add_argument(
        "--port", type=int, default=0, help="of the page; 0, the default, is a free one"
    )
    settings = parser.parse_args(argv)
    if not settings.web and len(settings.adapter or ()) > 1:
        parser.error("several adapters to choose from need --web")
    return settings


def start(
    name: str, adapter: str | None = None, eight_bits: bool = False
) -> Conversation:
    """Return a new conversation with a model, by name, and maybe an adapter on it.

    With eight_bits, the adapter is merged and the model quantized, and on the CPU.
    Raises ValueError, OSError or RuntimeError (a failed download) if one of them cannot
    be loaded, or the model is none for conversations.
    """
    model, tokenizer = load_pretrained(name)
    if adapter:
        load_adapter(model, adapter)
    if eight_bits:
        merge_lora(model)
        return Conversation(quantize(model), tokenizer)
    return Conversation(model.to(get_device()), tokenizer)


def talk(chat: Conversation, temperature: float = 0.0) -> None:
    """Answer what is typed, until a message is empty."""
    print("Type a message; an empty one, or Ctrl-D, ends the conversation.", end=" ")
    print("(An answer is cut off after 200 tokens.)")
    while text := input("you:   ").strip():
        print("model: ", end="", flush=True)
        for piece in chat.reply(text, temperature=temperature):
            print(piece, end="", flush=True)
        print()


def announce(address: str) -> None:
    """Say where the page is."""
    print(f"Open {address} in a browser; Ctrl-C here ends it.", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    settings = parse(argv)
    name, adapters = settings.model, settings.adapter or []
    begin = partial(start, name, eight_bits=settings.eight_bits)
    try:
        if settings.web:
            choices = {f"{name} + {a}": partial(begin, a) for a in adapters}
            choices[name] = begin
            asyncio.run(serve(choices, settings.port, announce))
        else:
            talk(begin(*adapters), settings.temperature)
    except (EOFError, KeyboardInterrupt):
        print()
    except (ValueError, OSError, RuntimeError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    for file in (sys.stdin, sys.stdout):
        file.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(main())
