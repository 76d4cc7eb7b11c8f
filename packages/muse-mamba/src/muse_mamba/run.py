"""What a training run consists of on one process, and how it is put together before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .checkpoint import Progress, check_folder, check_space, open_folder, resume
from .data import Collection, check_source, is_streamed, open_collection
from .graphs import check_device
from .guard import FiniteGuard
from .model import TokenModel
from .recipes import TrainConfig
from .running import adamw, join_processes, tensors
from .tokencache import stream_tokens, training_tokens
from .tokenizer import VQTokenizer
from .tokens import TokenData, open_cache, open_tokenizer, size_of
from .validation import Examples, make_examples

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(kw_only=True)
class Run:
    """One process's part of a run.

    Attributes:
        cfg: What decides it.
        out: Its folder.
        accelerator: Device, processes, precision, state.
        network: What is trained, wrapped for the processes and the precision.
        plain: The model itself.
        tokenizer: Turns tokens into pictures.
        average: Exponential moving average of its weights, which is validated and exported.
        averaged: Parameters and buffers of `average`.
        followed: Those of `plain`, in the same order.
        optimizer: Fused AdamW.
        guard: Keeps steps that are not finite from being applied.
        source: Where the samples come from.
        shown: Validation pictures; None without, and on other processes than the main one.
        progress: How far it is.
    """

    cfg: TrainConfig
    out: Path
    accelerator: Accelerator
    network: nn.Module
    plain: TokenModel
    tokenizer: VQTokenizer
    average: AveragedModel
    averaged: list[Tensor]
    followed: list[Tensor]
    optimizer: torch.optim.Optimizer
    guard: FiniteGuard
    source: TokenData
    shown: Examples | None
    progress: Progress


def prepare(cfg: TrainConfig, out: Path, *, resume_run: bool) -> Run:
    """Build everything, check the folder and the disk, and load a checkpoint if the run is resumed.

    Raises:
        ValueError: The folder, the disk, the data, the device or the number of processes does not fit.
    """
    accelerator = join_processes(cfg, "muse_mamba.train")
    if cfg.graph:
        check_device(accelerator.device)
    main, device = accelerator.is_main_process, accelerator.device
    if main:
        check_folder(cfg, out, resume=resume_run)
    check_source(cfg.data)
    tokenizer = open_tokenizer(cfg, device)
    size = size_of(cfg, tokenizer.config.factor)
    smaller = cfg.model.cond_grid[0] * tokenizer.config.factor
    if is_streamed(cfg.data):
        pictures, ids = stream_tokens(tokenizer, size, cfg, verbose=main)
        found = Collection(train=pictures, validation=[], other=[])
        cond = stream_tokens(tokenizer, smaller, cfg, verbose=False)[1] if cfg.model.cond_vocab else None
    else:
        found = open_collection(cfg.data, size=size, captioned=True, verbose=main)
        ids = training_tokens(tokenizer, found.train, size, cfg)
        cond = training_tokens(tokenizer, found.train, smaller, cfg) if cfg.model.cond_vocab else None
    cache = open_cache(cfg, found, device)
    shown = None
    if main and cfg.validation == "auto" and found.validation:
        shown = make_examples(cfg, tokenizer, found.validation, cache, size)
    torch.manual_seed(cfg.seed)  # the same first weights on every process
    plain = TokenModel(cfg.model) if cfg.init is None or resume_run else _start_from(cfg)
    plain.to(device).train()
    plain.checkpointing = cfg.checkpoint_activations
    average = AveragedModel(plain, use_buffers=True).eval()
    torch.manual_seed(cfg.seed + 1 + accelerator.process_index)  # other random numbers on every process from here on
    if main:
        check_space(out, sum(p.numel() for p in plain.parameters()), cfg.keep)
        open_folder(cfg, out)
    if cfg.compile:
        plain.compile()
    optimizer = adamw(plain, cfg)
    guard = FiniteGuard(accelerator, optimizer)
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
        plain=plain,
        tokenizer=tokenizer,
        average=average,
        averaged=tensors(average.module),
        followed=tensors(plain),
        optimizer=wrapped,
        guard=guard,
        source=TokenData(found.train, ids, cond, cache, cfg),
        shown=shown,
        progress=resume(accelerator, out) if resume_run else Progress(),
    )


def _start_from(cfg: TrainConfig) -> TokenModel:
    assert cfg.init is not None
    plain = TokenModel.from_pretrained(cfg.init)
    if plain.config != cfg.model:
        changed = [k for k, v in plain.config.to_dict().items() if cfg.model.to_dict()[k] != v]
        raise ValueError(f"init: {cfg.init} is another model: {', '.join(changed)} differ; give the same --model.*")
    return plain
