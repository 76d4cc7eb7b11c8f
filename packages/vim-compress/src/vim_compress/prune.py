"""Cut a trained network down to a target and save what is left as an ordinary network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .axes import Axis, find_axes
from .coarse import is_coarse, prune_coarse
from .config import ModelConfig
from .cost import Target, meter
from .cut import cut, fold_gates
from .importance import Importance, importance
from .models import Network
from .target import Plan, Spread, find_plan

PICTURES = 64  # in a batch, for gradients


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How latency is measured."""

    batch: int = 32
    device: str = "auto"
    precision: str = "fp32"
    repeats: int = 10


def prune_to(
    model: Network,
    target: Target,
    *,
    kinds: tuple[str, ...] | None = None,
    by: Importance = "magnitude",
    spread: Spread = "uniform",
    multiple: int = 0,
    batches: Iterator[tuple[Tensor, Tensor]] | None = None,
    how: Measure | None = None,
) -> tuple[Network, Plan]:
    """Return the largest cut of a network that meets a target, and the plan of the cut.

    Args:
        model: Trained, in eval mode. Left as it is.
        target: What is wanted.
        kinds: Kinds of axes to cut; None takes the family's usual ones. For a Vim also one of `coarse.COARSE`, alone.
        by: What decides which units go.
        spread: How the cut is spread.
        multiple: As for `target.sizes_at`.
        batches: Pictures and classes for by="taylor".
        how: How latency is measured.

    Raises:
        ValueError: The target cannot be reached (the message says what can), or something does not fit.
    """
    measure = meter(target, **asdict(how or Measure()))
    coarse = is_coarse(kinds)
    if coarse is not None:
        folded = fold_gates(model)
        return prune_coarse(folded, target, measure, kind=coarse, by=by, multiple=multiple, batches=batches or iter(()))
    axes = find_axes(model, kinds)
    scores = importance(model, axes, by, batches or iter(()))
    if model.config.gates:
        model = fold_gates(model)
        axes = find_axes(model, kinds)
    plan = find_plan(model.config, axes, scores, target, measure, spread=spread, multiple=multiple)
    return (cut(model, plan.kept) if plan.kept else model), plan


def taylor_batches(
    data: str | None, config: ModelConfig, count: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield training pictures for gradients, the same every time.

    Raises:
        ValueError: The data are missing or have other classes.
    """
    import numpy as np

    from .data import named
    from .preprocess import prepare, to_float
    from .sources import read_part

    train = read_part(data, max(config.image), "train", most=count * PICTURES)
    assert train is not None
    named(config, train.classes, train.domain)
    order = np.random.default_rng(0).permutation(len(train))[: count * PICTURES]
    for first in range(0, len(order), PICTURES):
        numbers = order[first : first + PICTURES]
        pixels = np.stack([prepare(train.image(int(i)), config) for i in numbers])
        label = torch.from_numpy(train.labels[numbers]).to(device)
        yield to_float(torch.from_numpy(pixels), config, device), label


def save_cut(model: Network, out: Path, *, overwrite: bool) -> None:
    """Write a network into a new folder, whole or not at all.

    Raises:
        ValueError: The folder has something in it and `overwrite` is off, or it cannot be written.
    """
    check_out(out, overwrite=overwrite)
    half = out.with_name(out.name + ".tmp")
    try:
        shutil.rmtree(half, ignore_errors=True)
        model.cpu().float().save_pretrained(half)
        shutil.rmtree(out, ignore_errors=True)
        half.rename(out)
    except OSError as error:
        raise ValueError(f"--out: {out} cannot be written: {error}; choose another folder") from error


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that has something in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise ValueError(f"--out: {out} exists; choose another folder, or add --overwrite")


def report(model: Network, small: Network, plan: Plan, target: Target) -> dict[str, Any]:
    """Return what became of a network: sizes before and after, and what is left of each axis."""
    from .info import count, model_info

    before, after = model_info(model.config), model_info(small.config)
    axes: list[Axis] = find_axes(small)
    return {
        "quantity": target.quantity,
        "before": plan.before,
        "after": plan.cost,
        "ratio": plan.cost / plan.before,
        "share": plan.share,
        "parameters": [count(model), count(small)],
        "total_macs": [before["total_macs"], after["total_macs"]],
        "widths": {axis.name: axis.size for axis in axes},
    }
