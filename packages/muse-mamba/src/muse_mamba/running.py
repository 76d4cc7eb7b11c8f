"""What both trainers do in the same way: joining processes, optimizers, averages, rows of numbers."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .runconfig import RunConfig, ema_at

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim.swa_utils import AveragedModel

PLAIN = ("A_log", "D", "null", "null_kv", "position", "scale")  # last names of parameters without weight decay


def join_processes(cfg: RunConfig, module: str) -> Accelerator:
    """Find the device and the other processes.

    Raises:
        ValueError: The network would be cut over the processes, or there are more or fewer than the run is meant for.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType

    wrapper = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # spares a copy of every gradient and back
    accelerator = Accelerator(mixed_precision=cfg.precision, kwargs_handlers=[wrapper])
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            "train: accelerate must keep the network whole on every process, got a configuration for "
            f"{accelerator.distributed_type.value}; leave out --config_file and --use_fsdp"
        )
    if accelerator.num_processes != cfg.processes:
        raise ValueError(
            f"train: --processes must be the number of processes, {accelerator.num_processes}, got {cfg.processes}; "
            f"start {cfg.processes} with: accelerate launch --num_processes {cfg.processes} -m {module} ... "
            "(on CPUs: torchrun --nproc_per_node)"
        )
    return accelerator


def adamw(module: nn.Module, cfg: RunConfig) -> torch.optim.AdamW:
    """Return fused AdamW; weight decay is for matrices only."""
    decayed, plain = [], []
    for name, parameter in module.named_parameters():
        last, owner = name.rpartition(".")[2], name.rpartition(".")[0]
        embedding = "embedding" in owner
        (plain if parameter.ndim < 2 or last in PLAIN or embedding else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=cfg.lr, betas=cfg.betas, fused=True)


def tensors(module: nn.Module) -> list[Tensor]:
    """Return the parameters and floating buffers of a network, as they are in memory."""
    return [x.detach() for x in (*module.parameters(), *module.buffers()) if x.is_floating_point()]


def follow(cfg: RunConfig, step: int, average: AveragedModel, averaged: list[Tensor], followed: list[Tensor]) -> None:
    """Let the averaged weights and buffers follow by one step.

    This is `AveragedModel.update_parameters` on lists that were sorted once.
    """
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    get_ema_multi_avg_fn(ema_at(step, cfg))(averaged, followed, average.n_averaged)


def without_sync(accelerator: Accelerator, wait: bool, *networks: nn.Module) -> AbstractContextManager[Any]:
    """Keep processes from exchanging gradients before the last micro-step."""
    from contextlib import ExitStack

    if not wait or accelerator.num_processes == 1:
        return nullcontext()
    stack = ExitStack()
    for network in networks:
        stack.enter_context(accelerator.no_sync(network))
    return stack


def summed(accelerator: Accelerator, x: Tensor, how: str = "sum") -> Tensor:
    """Return the sum (or mean) of a tensor over the processes."""
    reduced = accelerator.reduce(x, how) if accelerator.num_processes > 1 else x
    assert isinstance(reduced, Tensor)
    return reduced


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that tensors took on a GPU; elsewhere what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import psutil

    return psutil.Process().memory_info().rss


def add_row(file: Path, row: dict[str, Any]) -> None:
    """Append one JSON row to a file."""
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
