"""What a training run consists of on one process, and how it is put together before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..checkpoint import Progress, check_folder, check_space, open_folder, resume
from ..data import PictureData, is_streamed, open_collection
from ..guard import FiniteGuard
from ..packed import Pictured
from ..running import adamw, join_processes, tensors
from ..stream import PictureStream
from .discriminator import Discriminator
from .loss import perceptual_network
from .network import VQTokenizer
from .recipes import TokenizerTrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(kw_only=True)
class Run:
    """One process's part of a run.

    Attributes:
        cfg: What decides it.
        out: Its folder.
        accelerator: Device, processes, precision, state.
        network: The tokenizer, wrapped for the processes and the precision.
        plain: The tokenizer itself.
        judge: The discriminator, wrapped; None without an adversarial loss.
        plain_judge: The discriminator itself.
        perceptual: Backbone of the perceptual loss.
        average: Exponential moving average of weights and buffers, which is validated and exported.
        averaged: Parameters and buffers of `average`.
        followed: Those of `plain`, in the same order.
        optimizer: Of the tokenizer.
        judge_optimizer: Of the discriminator.
        guard: Keeps steps that are not finite from being applied.
        source: Where the pictures come from.
        shown: Validation pictures; only the main process has them.
        progress: How far it is.
    """

    cfg: TokenizerTrainConfig
    out: Path
    accelerator: Accelerator
    network: nn.Module
    plain: VQTokenizer
    judge: nn.Module | None
    plain_judge: Discriminator | None
    perceptual: nn.Module | None
    average: AveragedModel
    averaged: list[Tensor]
    followed: list[Tensor]
    optimizer: torch.optim.Optimizer
    judge_optimizer: torch.optim.Optimizer | None
    guard: FiniteGuard
    source: PictureData | PictureStream
    shown: list[Pictured]
    progress: Progress


def prepare(cfg: TokenizerTrainConfig, out: Path, *, resume_run: bool) -> Run:
    """Build everything, check the folder and the disk, and load a checkpoint if the run is resumed.

    Raises:
        ValueError: The folder, the disk, the data or the number of processes does not fit.
    """
    accelerator = join_processes(cfg, "muse_mamba.tokenizer.train")
    main, device = accelerator.is_main_process, accelerator.device
    if main:
        check_folder(cfg, out, resume=resume_run)
    largest = max(stage.size for stage in cfg.plan)
    source: PictureData | PictureStream
    validation: list[Pictured] = []
    if is_streamed(cfg.data):
        source = PictureStream(cfg, accelerator.process_index, flip=cfg.flip, shift=cfg.shift)
    else:
        found = open_collection(cfg.data, size=largest, captioned=False, verbose=main)
        source = PictureData(found.train, cfg, flip=cfg.flip, shift=cfg.shift)
        validation = found.validation
    torch.manual_seed(cfg.seed)  # the same first weights on every process
    plain = VQTokenizer(cfg.network) if cfg.init is None or resume_run else _start_from(cfg)
    judge = Discriminator(cfg.discriminator_channels, cfg.discriminator_layers) if cfg.adversarial else None
    plain.to(device).train()
    plain.checkpointing = cfg.checkpoint_activations
    perceptual = perceptual_network(cfg)
    average = AveragedModel(plain, use_buffers=True).eval()
    torch.manual_seed(cfg.seed + 1 + accelerator.process_index)  # other random numbers on every process from here on
    if main:
        size = sum(p.numel() for m in (plain, judge) if m is not None for p in m.parameters())
        check_space(out, size, cfg.keep)
        open_folder(cfg, out)
    if cfg.compile:
        plain.compile()
    optimizer = adamw(plain, cfg)
    judged = None if judge is None else adamw(judge.to(device), cfg)
    guard = FiniteGuard(accelerator, *(o for o in (optimizer, judged) if o is not None))
    network, wrapped = accelerator.prepare(plain, optimizer)
    wrapped_judge, wrapped_judged = (None, None) if judge is None else accelerator.prepare(judge, judged)
    accelerator.register_for_checkpointing(average)
    accelerator.wait_for_everyone()
    return Run(
        cfg=cfg,
        out=out,
        accelerator=accelerator,
        network=network,
        plain=plain,
        judge=wrapped_judge,
        plain_judge=judge,
        perceptual=None if perceptual is None else perceptual.to(device),
        average=average,
        averaged=tensors(average.module),
        followed=tensors(plain),
        optimizer=wrapped,
        judge_optimizer=wrapped_judged,
        guard=guard,
        source=source,
        shown=validation if main and cfg.validation == "auto" else [],
        progress=resume(accelerator, out) if resume_run else Progress(),
    )


def _start_from(cfg: TokenizerTrainConfig) -> VQTokenizer:
    assert cfg.init is not None
    plain = VQTokenizer.from_pretrained(cfg.init)
    if plain.config != cfg.network:
        raise ValueError(f"init: {cfg.init} is another tokenizer: {plain.config}; give --network.* to match it")
    return plain
