"""What to say when a GPU's memory is full: which micro-batch fits is tried, not guessed."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch

from .runconfig import RunConfig

Config = TypeVar("Config", bound=RunConfig)


def fitting_batch(cfg: Config, train: Callable[[Config, Path], object], *, recorded: bool = False) -> str:
    """Try smaller micro-batches for two steps each, in a temporary folder, and say which one fits.

    To be called when the run that failed is gone, its traceback too. With several processes nothing is tried, since
    they would have to agree on it.

    Args:
        cfg: The run that did not fit, without `graph`.
        train: Trains a run in a folder.
        recorded: It had `graph`: recordings take memory of their own, and do not accumulate.

    Returns:
        One sentence for the user.
    """
    full = f"the GPU's memory is full at --micro_batch {cfg.micro_batch}"
    again = "start again in a new folder; the steps stay the same, their gradients are accumulated"
    divides = [2**n for n in range(cfg.micro_batch.bit_length()) if cfg.global_batch % (2**n * cfg.processes) == 0]
    smaller = [micro for micro in reversed(divides) if micro < cfg.micro_batch]  # powers of two: a few tries
    without = " without --graph" if recorded else ""
    worth = [cfg.micro_batch, *smaller] if recorded else smaller
    if cfg.processes > 1 and worth:
        return f"{full}; try --micro_batch {worth[0]}{without}: {again}"
    for micro in worth:
        if _fits(cfg, micro, train):
            return f"{full}; --micro_batch {micro} fits{without}: {again}"
    return f"{full} and no smaller one fits{without}; add --checkpoint_activations true or take a smaller preset"


def _fits(cfg: Config, micro: int, train: Callable[[Config, Path], object]) -> bool:
    """Whether two steps of two micro-batches fit: the second has the optimizer's moments and gradients beside it."""
    gc.collect()
    torch.cuda.empty_cache()
    never = cfg.steps + 1
    trial = replace(cfg, micro_batch=micro, global_batch=2 * micro, stop_at=2, validation="none",
                    log_every=never, save_every=never, sample_every=never)  # fmt: skip
    with TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        try:
            train(trial, Path(folder) / "trial")
        except torch.OutOfMemoryError:
            return False
    return True
