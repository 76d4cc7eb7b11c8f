"""What a training run consists of on one process, and how it is put together before the first step."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .checkpoint import Progress, check_folder, check_space, open_folder, resume
from .data import Source, open_source
from .exchange import Exchange
from .graphs import check_device, record
from .guard import FiniteGuard
from .model import HybridSR
from .photos import Pair
from .recipes import TrainConfig
from .weights import start_from


@dataclass(kw_only=True)
class Run:
    """One process's part of a run.

    Attributes:
        cfg: What decides it.
        out: Its folder.
        accelerator: Device, processes, precision, accumulation, state.
        network: What is trained, wrapped for the processes and the precision.
        average: Exponential moving average of its weights, which is validated and exported.
        averaged: Parameters and buffers of `average`.
        followed: Those of `network`, in the same order.
        optimizer: Fused AdamW.
        guard: Keeps steps that are not finite from being applied.
        exchange: Averages the gradients of recorded passes over the processes.
        source: Where the crops come from.
        shown: Validation photos; only the main process has them.
        progress: How far it is.
    """

    cfg: TrainConfig
    out: Path
    accelerator: Accelerator
    network: nn.Module
    average: AveragedModel
    averaged: list[Tensor]
    followed: list[Tensor]
    optimizer: torch.optim.Optimizer
    guard: FiniteGuard
    exchange: Exchange
    source: Source
    shown: list[Pair]
    progress: Progress


def prepare(cfg: TrainConfig, out: Path, *, resume_run: bool) -> Run:
    """Build everything, check the folder and the disk, and load a checkpoint if the run is resumed.

    Raises:
        ValueError: The folder, the disk, the data, the device or the number of processes does not fit.
    """
    accelerator = join_processes(cfg)
    if cfg.graph:
        check_device(accelerator.device)
    main = accelerator.is_main_process
    if main:
        check_folder(cfg, out, resume=resume_run)
    source, shown = open_source(cfg, rank=accelerator.process_index, verbose=main)
    torch.manual_seed(cfg.seed)  # the same first weights on every process
    plain = HybridSR(cfg.model)
    if cfg.init is not None and not resume_run:
        anew = start_from(plain, cfg.init)
        if main and anew:
            print(f"init: {len(anew)} parameters start anew: {', '.join(anew)}", file=sys.stderr)
    plain.to(accelerator.device)
    plain.checkpointing = cfg.checkpoint_activations
    average = AveragedModel(plain, use_buffers=True).eval()
    torch.manual_seed(cfg.seed + 1 + accelerator.process_index)  # other random numbers on every process from here on
    if main:
        check_space(out, sum(p.numel() for p in plain.parameters()), cfg.keep)
        open_folder(cfg, out)
    if cfg.compile:
        plain.compile()
    optimizer = torch.optim.AdamW(
        plain.parameters(), lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay, fused=True
    )
    guard = FiniteGuard(accelerator, optimizer)
    if cfg.graph:
        record(plain, cfg, accelerator.device)
    # recorded steps exchange gradients themselves
    network = accelerator.prepare_model(plain, evaluation_mode=cfg.graph)
    wrapped = accelerator.prepare_optimizer(optimizer)
    accelerator.register_for_checkpointing(average)
    accelerator.wait_for_everyone()
    return Run(
        cfg=cfg,
        out=out,
        accelerator=accelerator,
        network=network,
        average=average,
        averaged=tensors(average.module),
        followed=tensors(plain),
        optimizer=wrapped,
        guard=guard,
        exchange=Exchange(plain.parameters(), cfg.processes if cfg.graph else 1),
        source=source,
        shown=shown if main else [],
        progress=resume(accelerator, out) if resume_run else Progress(),
    )


def tensors(module: nn.Module) -> list[Tensor]:
    """Return the parameters and floating buffers of a network, as they are in memory."""
    return [x.detach() for x in (*module.parameters(), *module.buffers()) if x.is_floating_point()]


def join_processes(cfg: TrainConfig) -> Accelerator:
    """Find the device and the other processes.

    Raises:
        ValueError: The network would be cut over the processes, these are more or fewer than the run is meant for,
            or the device lacks the precision.
    """
    plugin = GradientAccumulationPlugin(num_steps=cfg.micro_steps, sync_with_dataloader=False)
    wrapper = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # spares a copy of every gradient and back
    accelerator = Accelerator(
        mixed_precision=cfg.precision, gradient_accumulation_plugin=plugin, kwargs_handlers=[wrapper]
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            "train: accelerate must keep the network whole on every process, got a configuration for "
            f"{accelerator.distributed_type.value}; leave out --config_file and --use_fsdp"
        )
    if accelerator.num_processes != cfg.processes:
        raise ValueError(
            f"train: --processes must be the number of processes, {accelerator.num_processes}, got {cfg.processes}; "
            f"start {cfg.processes} with: accelerate launch --num_processes {cfg.processes} -m hybrid_sr.train ... "
            "(on CPUs: torchrun --nproc_per_node)"
        )
    return accelerator
