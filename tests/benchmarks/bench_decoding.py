"""Measure how fast SmolLM2 writes, token by token, in several programs, into a CSV.

    python tests/benchmarks/bench_decoding.py       # pip install xllamacpp transformers
    python tests/benchmarks/bench_decoding.py --threads 1 2 --rounds 5

All write after the same prompt, greedily, one token at a time, in turns, in one run,
with the same number of threads; the prompt's own time is not counted. A program that is
not installed is left out, and said. llama.cpp reads the course's own file (Q4_1), and
the same weights in Q8_0, which this program writes to a temporary folder. The order
is turned round in every other round. The medians, with the lowest and the highest
speed, go to ch05_pretraining/quantization_decoding.csv, whose first line names the
machine; ch05_quantization.ipynb shows the medians.
"""

import argparse
import copy
import csv
import datetime
import io
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch

from shared.pretrained_weights import load_pretrained
from shared.pretraining import stream
from shared.quantization import quantize, size_in_bytes
from shared.support import COURSE, write_whole
from shared.support.fetch import fetch_smollm2
from shared.support.files import save_for_transformers
from shared.text_data import load_text

PATH = COURSE / "ch05_pretraining" / "quantization_decoding.csv"
COLUMNS = "program threads tokens_per_second lowest highest".split()
N_PROMPT, N_NEW = 60, 48
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def processor() -> str:
    """Return the processor's name, as well as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def ours(model, prompt: torch.Tensor) -> Callable[[], float]:
    """Return a function that writes and returns tokens per second, in our classes."""

    def write() -> float:
        times = [time.perf_counter() for _ in stream(model, prompt, N_NEW)]
        return (N_NEW - 1) / (times[-1] - times[0])

    return write


class Clock:
    """What transformers calls a streamer: it notes when each token comes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def in_transformers(model, tokenizer, prompt: torch.Tensor) -> Callable[[], float]:
    """Return the same for transformers, in float32; ImportError if it is missing."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_for_transformers(model, tokenizer, Path(folder) / "m")
        theirs = AutoModelForCausalLM.from_pretrained(
            Path(folder) / "m", dtype=torch.float32
        ).eval()
    theirs.generation_config.eos_token_id = None  # go on after the end of a turn

    def write() -> float:
        clock = Clock()
        theirs.generate(
            prompt,
            max_new_tokens=N_NEW,
            do_sample=False,
            streamer=clock,
            pad_token_id=0,
        )
        times = clock.times[1:]  # the first call hands over the prompt
        return (len(times) - 1) / (times[-1] - times[0])

    return write


def write_q8_0(source: Path, target: Path) -> None:
    """Write a GGUF file once more, with every matrix in Q8_0."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        if numbers.ndim < 2:
            writer.add_tensor(tensor.name, np.ascontiguousarray(numbers))
        else:
            rows = gguf.quantize(numbers, Q8_0)
            writer.add_tensor(tensor.name, rows, raw_dtype=Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_llama_cpp(path: Path, prompt: torch.Tensor, threads: int) -> Callable:
    """Return the same for llama.cpp; ImportError if xllamacpp is missing."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    request = {
        "prompt": prompt[0].tolist(), "max_tokens": N_NEW, "temperature": 0.0,
        "ignore_eos": True, "cache_prompt": False,
    }  # fmt: skip

    def write() -> float:
        timings = server.handle_completions(request)["timings"]
        if timings["predicted_n"] != N_NEW:
            raise RuntimeError(f"llama.cpp stopped early: {timings}")
        return (N_NEW - 1) * 1000 / timings["predicted_ms"]

    return write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=PATH)
    args = parser.parse_args()
    model, tokenizer = load_pretrained("smollm2-135m")
    prompt = torch.tensor([tokenizer.encode_ordinary(load_text())[:N_PROMPT]])
    small = quantize(copy.deepcopy(model))
    half = copy.deepcopy(model).to(torch.bfloat16)
    sizes = [size_in_bytes(m) / 1e6 for m in (model, half, small)]
    print("MB: float32 {:.0f}, bfloat16 {:.0f}, 8 bits {:.0f}".format(*sizes))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        q8_0 = Path(folder) / "q8_0.gguf"
        write_q8_0(fetch_smollm2(), q8_0)
        for threads in args.threads:
            torch.set_num_threads(threads)
            ways = {
                "ours, float32": ours(model, prompt),
                "ours, bfloat16": ours(half, prompt),
                "ours, 8 bits": ours(small, prompt),
            }
            others = {
                "transformers, float32": lambda n: in_transformers(
                    model, tokenizer, prompt
                ),
                "llama.cpp, Q8_0": lambda n: in_llama_cpp(q8_0, prompt, n),
                "llama.cpp, Q4_1": lambda n: in_llama_cpp(fetch_smollm2(), prompt, n),
            }
            for name, make in others.items():
                try:
                    ways[name] = make(threads)
                except ImportError as error:
                    print(f"left out: {name} ({error})")
            speeds: dict[str, list[float]] = {name: [] for name in ways}
            for round_ in range(args.rounds + 1):
                turns = list(ways)[:: -1 if round_ % 2 else 1]
                for name in turns:
                    speed = ways[name]()
                    if round_:  # the first warms up
                        speeds[name].append(speed)
            for name, values in speeds.items():
                found = statistics.median(values), min(values), max(values)
                middle, low, high = (f"{speed:.2f}" for speed in found)
                rows.append([name, threads, middle, low, high])
                print(f"{name:22} {threads} threads {middle} tokens a second")
    table = io.StringIO()
    today = datetime.date.today().isoformat()
    print(f"# {processor()}, PyTorch {torch.__version__}, {today}", file=table)
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    write_whole(args.output, table.getvalue())


if __name__ == "__main__":
    main()
