"""Several processes that train one model: pretrain.py under torchrun.

Process 0 is the chief, which alone writes files. Started without torchrun, there is one
process, and nothing here communicates.
"""

import os
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from shared.gpt_model import GPTModel
from shared.pretraining import TrainConfig, Trainer, next_token_loss
from shared.support.course import get_device


def start_processes() -> torch.device:
    """Meet the other processes, if there are any; return the device of this one."""
    device = get_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        patience = timedelta(hours=12)  # tokenising may take some
        dist.init_process_group(backend, timeout=patience)
    return device


def end_processes() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def process() -> int:
    """Return the number of this process: 0, the chief, or another of several."""
    return dist.get_rank() if dist.is_initialized() else 0


def n_processes() -> int:
    """Return how many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def any_process(flag: bool, device: torch.device) -> bool:
    """Say whether the flag is up in any process; all must call this together."""
    if not dist.is_initialized():
        return flag
    raised = torch.tensor(float(flag), device=device)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised)


class SharedTrainer(Trainer):
    """A trainer of a GPT whose batches are shared out among processes.

    `replica` is the model as it is called: compiled, or wrapped in
    DistributedDataParallel, which adds up the gradients of all processes. Then every
    token counts the same, whichever process has it.
    """

    model: GPTModel

    def __init__(self, model: GPTModel, config: TrainConfig, replica: nn.Module):
        super().__init__(
            model, config, lambda _, *batch: next_token_loss(replica, *batch)
        )
        self.no_sync = getattr(replica, "no_sync", nullcontext)

    def add_gradients(self, batches: list[tuple]) -> tuple[float, float]:
        """Add up the gradients of all processes; return all losses and what counts."""
        if n_processes() == 1:
            return super().add_gradients(batches)
        with self.no_sync():  # gradients travel once in a step, with the last batch
            first = super().add_gradients(batches[:-1])
        last = super().add_gradients(batches[-1:])
        sums = torch.tensor([first, last], dtype=torch.float64).sum(dim=0)
        sums = sums.to(self.device)
        dist.all_reduce(sums)
        for p in self.weights:
            if p.grad is not None:
                p.grad *= n_processes()  # DistributedDataParallel has divided by it
        total, n_targets = sums.tolist()
        return total, n_targets
