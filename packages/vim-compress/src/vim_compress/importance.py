"""How much a network would miss each unit of its axes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .axes import Axis
from .checks import refuse
from .models import Network

Importance = Literal["magnitude", "taylor", "gates", "random"]


def importance(
    model: Network, axes: list[Axis], kind: Importance, batches: Iterable[tuple[Tensor, Tensor]] = (), *, seed: int = 0
) -> dict[str, Tensor]:
    """Score every unit; low ones can go.

    Args:
        model: The network, in eval mode.
        axes: Its axes.
        kind: "magnitude": norm of all slices of a unit, each tensor divided by its own norm, so that none outweighs
            the others. "taylor": |sum of w * g| over the slices of a unit, g being the mean gradient of the
            cross-entropy: what the loss would change by at first order if it went. "gates": |gate|. "random".
        batches: For "taylor": pictures as the network takes them, and classes.
        seed: For "random".

    Returns:
        By axis, (size,) float32 on the CPU.

    Raises:
        ValueError: "gates" of a network without, or "taylor" without pictures.
    """
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return {axis.name: torch.rand(axis.size, generator=generator) for axis in axes}
    tensors = dict(model.named_parameters())
    if kind == "gates":
        without = [axis.name for axis in axes if axis.gate is None]
        if without:
            refuse(
                "importance", "kind", "'magnitude', 'taylor' or 'random' without gates", "'gates'", "train with gates"
            )
        return {axis.name: tensors[str(axis.gate)].detach().abs().float().cpu() for axis in axes}
    if kind == "taylor":
        values = {name: g * tensors[name].detach() for name, g in mean_gradients(model, batches).items()}
        return {axis.name: sum_over_units(axis, values).abs().cpu() for axis in axes}
    squares = {}
    for name, tensor in tensors.items():
        square = tensor.detach().float().square()
        squares[name] = square / square.sum().clamp_min(1e-30)
    return {axis.name: sum_over_units(axis, squares).sqrt().cpu() for axis in axes}


def mean_gradients(model: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return the mean gradient of the cross-entropy by parameter, float32.

    Raises:
        ValueError: There is no batch.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    sums: list[Tensor] | None = None
    count = 0
    for x, label in batches:
        loss = torch.nn.functional.cross_entropy(model(x).float(), label)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        wide = [torch.zeros_like(p) if g is None else g.float() for g, p in zip(grads, parameters, strict=True)]
        sums = wide if sums is None else [a + b for a, b in zip(sums, wide, strict=True)]
        count += 1
    if sums is None:
        refuse("importance", "batches", "pictures for kind='taylor'", "none", "give data, or take 'magnitude'")
    return {name: total / count for name, total in zip(names, sums, strict=True)}


def sum_over_units(axis: Axis, values: dict[str, Tensor]) -> Tensor:
    """Sum values, by parameter, over all slices of each unit of an axis: (size,), float32 on the CPU."""
    total = torch.zeros(axis.size)
    for member in axis.members:
        if member.tensor not in values:  # a statistic, not a weight
            continue
        value = values[member.tensor]
        rows = value.float().transpose(0, member.dim).flatten(1).sum(1) if value.dim() > 1 else value.float()
        rows = rows.cpu()
        for start in member.starts:
            total += rows[start : start + axis.size * member.unit].view(axis.size, member.unit).sum(1)
    return total
