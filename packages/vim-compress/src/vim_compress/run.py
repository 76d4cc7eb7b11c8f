"""What a training run consists of on one process, and how it is put together before the first step."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin
from timm.optim import param_groups_weight_decay  # pyright: ignore[reportPrivateImportUsage]
from timm.optim.lamb import Lamb
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .checkpoint import Progress, check_folder, check_space, latest, open_folder, resume
from .config import ModelConfig
from .data import Source, open_source
from .graphs import check_device
from .guard import FiniteGuard
from .models import Network, make_network
from .pruner import Pruner
from .recipes import TrainConfig
from .validation import Held
from .weights import load_model, start_from


@dataclass(kw_only=True)
class Run:
    """One process's part of a run.

    Attributes:
        cfg: What decides it.
        out: Its folder.
        model: The network's configuration, with the classes of the data.
        accelerator: Device, processes, precision, accumulation, state.
        network: What is trained, wrapped for the processes and the precision.
        average: Exponential moving average of its weights, which is validated and exported.
        averaged: Parameters and buffers of `average`.
        followed: Those of `network`, in the same order.
        optimizer: Fused AdamW, or LAMB.
        guard: Keeps steps that are not finite from being applied.
        pruner: What is masked.
        teacher: Whose outputs are imitated; None without.
        source: Where the pictures come from.
        held: Held-out pictures; only the main process has them.
        progress: How far it is.
    """

    cfg: TrainConfig
    out: Path
    model: ModelConfig
    accelerator: Accelerator
    network: nn.Module
    average: AveragedModel
    averaged: list[Tensor]
    followed: list[Tensor]
    optimizer: torch.optim.Optimizer
    guard: FiniteGuard
    pruner: Pruner
    teacher: nn.Module | None
    source: Source
    held: Held | None
    progress: Progress


def prepare(cfg: TrainConfig, out: Path, *, resume_run: bool) -> Run:
    """Build everything, check the folder and the disk, and load a checkpoint if the run is resumed.

    Raises:
        ValueError: The folder, the disk, the data, the teacher, the device or the number of processes does not fit.
    """
    accelerator = join_processes(cfg)
    if cfg.graph:
        check_device(accelerator.device)
    main = accelerator.is_main_process
    if main:
        check_folder(cfg, out, resume=resume_run)
    source, held, model = open_source(cfg, rank=accelerator.process_index, verbose=main)
    torch.manual_seed(cfg.seed)  # the same first weights on every process
    plain = make_network(model)
    goes_on = resume_run and latest(out, verbose=False) is not None  # else it begins, also if it had been begun before
    if cfg.init is not None and not goes_on:
        anew = start_from(plain, cfg.init)
        if main and anew:
            print(f"init: {len(anew)} parameters start anew: {', '.join(anew[:8])}", file=sys.stderr)
    plain.to(accelerator.device)
    plain.set_grad_checkpointing(cfg.checkpoint_activations)
    average = AveragedModel(plain, use_buffers=True).eval()
    pruner = Pruner(cfg, plain, average.module)
    torch.manual_seed(cfg.seed + 1 + accelerator.process_index)  # other random numbers on every process from here on
    if main:
        check_space(out, sum(p.numel() for p in plain.parameters()), cfg.keep)
        open_folder(cfg, out)
    if cfg.compile:
        plain.compile()
    optimizer = make_optimizer(cfg, plain)
    guard = FiniteGuard(accelerator, optimizer)
    # recorded steps exchange gradients themselves
    network = accelerator.prepare_model(plain, evaluation_mode=cfg.graph)
    wrapped = accelerator.prepare_optimizer(optimizer)
    accelerator.register_for_checkpointing(average)
    accelerator.register_for_checkpointing(pruner)
    accelerator.wait_for_everyone()
    return Run(
        cfg=cfg,
        out=out,
        model=model,
        accelerator=accelerator,
        network=network,
        average=average,
        averaged=tensors(average.module),
        followed=tensors(plain),
        optimizer=wrapped,
        guard=guard,
        pruner=pruner,
        teacher=load_teacher(cfg, model, accelerator.device),
        source=source,
        held=Held(held, model) if main and held is not None else None,
        progress=resume(accelerator, out, cfg.first_step) if resume_run else Progress(step=cfg.first_step),
    )


def make_optimizer(cfg: TrainConfig, network: Network) -> torch.optim.Optimizer:
    """Build the optimizer; norms, biases and what `no_weight_decay` names do not decay."""
    groups = param_groups_weight_decay(network, cfg.weight_decay, no_weight_decay_list=network.no_weight_decay())
    if cfg.optimizer == "lamb":
        return Lamb(groups, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay, max_grad_norm=None)
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay, fused=True)


def load_teacher(cfg: TrainConfig, model: ModelConfig, device: torch.device) -> nn.Module | None:
    """Load the network that is imitated, frozen.

    Raises:
        ValueError: It cannot be read, or has other classes or pictures.
    """
    if cfg.teacher is None:
        return None
    teacher = load_model(cfg.teacher, device=device)
    for name in ("classes", "channels", "image", "mean", "std"):
        if getattr(teacher.config, name) != getattr(model, name):
            wanted, found = getattr(model, name), getattr(teacher.config, name)
            raise ValueError(
                f"teacher: {name} must be {wanted} as the student's, got {found}; choose another --teacher"
            )
    return teacher.requires_grad_(False)


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
            f"start {cfg.processes} with: accelerate launch --num_processes {cfg.processes} -m vim_compress.train ... "
            "(on CPUs: torchrun --nproc_per_node)"
        )
    return accelerator
