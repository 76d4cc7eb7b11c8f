"""Cuts of a Vim that are coarser than channels: whole blocks, single directions, and the width of the residual stream.

Units go in the order of their importance, the least important first, until the target is met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from .axes import Axis, Member
from .checks import refuse
from .config import ModelConfig
from .cost import Target
from .cut import cut_residual, remove_blocks, remove_direction, residual_tensors
from .importance import Importance, mean_gradients, sum_over_units
from .models import Network
from .target import Plan, allowed
from .vim import VisionMamba

COARSE = ("blocks", "directions", "residual")
RESIDUAL_MULTIPLE = 16  # channels

Values = Mapping[str, Tensor]


def prune_coarse(
    model: Network,
    target: Target,
    measure: Callable[[ModelConfig], float],
    *,
    kind: str,
    by: Importance = "magnitude",
    multiple: int = 0,
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    seed: int = 0,
) -> tuple[Network, Plan]:
    """Remove as few units of one coarse kind as a target needs.

    Args:
        model: A Vim in eval mode. Left as it is.
        target: What is wanted.
        measure: Cost of a configuration.
        kind: "blocks", "directions" (one of each block stays) or "residual".
        by: "magnitude": norm of what writes a unit's result. "taylor": first-order change of the loss if that went.
            "random".
        multiple: Channels of the residual stream that go together; 0 takes 16.
        batches: Pictures and classes for "taylor".
        seed: For "random".

    Raises:
        ValueError: The target cannot be reached (the message says what can), or the network is no such Vim.
    """
    if not isinstance(model, VisionMamba) or model.config.mixer != "mamba":
        refuse("prune", "axes", "inner, hidden, heads, x, z for this network", repr(kind), "only a Vim can be cut so")
    values = _values(model, by, batches, seed, relative=kind == "residual")
    smaller, most = {"blocks": _by_blocks, "directions": _by_directions, "residual": _by_residual}[kind](
        model, values, multiple or RESIDUAL_MULTIPLE
    )
    before = measure(model.config)
    limit = allowed(target, before)
    known: dict[int, float] = {0: before}

    def cost(count: int) -> float:
        if count not in known:
            known[count] = measure(smaller(count).config)
        return known[count]

    if before <= limit:
        return model, Plan({}, 1.0, before, before)
    if cost(most) > limit:
        raise ValueError(
            f"--target: {target.text(limit)} cannot be reached by cutting {kind}; the nearest is "
            f"{target.text(cost(most))} ({target.quantity}={cost(most) / before:.2f}x); ask for that or other --axes"
        )
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= limit else (middle, high)
    return smaller(high), Plan({}, 1 - high / (most + 1), cost(high), before)


def _values(
    model: VisionMamba, by: Importance, batches: Iterable[tuple[Tensor, Tensor]], seed: int, *, relative: bool
) -> Values:
    """Return what is summed over the entries of a unit, by parameter; squares as shares of a tensor's if `relative`."""
    tensors = {name: p.detach().float() for name, p in model.named_parameters()}
    if by == "gates":
        refuse("prune", "importance", "magnitude, taylor or random for these axes", "'gates'", "gates are for channels")
    if by == "taylor":
        return {name: g * tensors[name] for name, g in mean_gradients(model, batches).items()}
    if by == "random":
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.rand(p.shape, generator=generator) for name, p in tensors.items()}
    squares = {name: p.square() for name, p in tensors.items()}
    return {name: s / s.sum().clamp_min(1e-30) for name, s in squares.items()} if relative else squares


Smaller = tuple[Callable[[int], VisionMamba], int]  # the network without the n least important units; most that can go


def _by_blocks(model: VisionMamba, values: Values, multiple: int) -> Smaller:
    """Blocks by their output projection: without it a block adds nothing."""
    sums = [values[f"layers.{layer}.mixer.out_proj.weight"].sum() for layer in range(model.config.depth)]
    order = torch.stack(sums).abs().argsort().tolist()
    return lambda count: remove_blocks(model, order[:count]) if count else model, model.config.depth - 1


def _by_directions(model: VisionMamba, values: Values, multiple: int) -> Smaller:
    """Directions by the rows of x_proj that read the states, and D: without both a direction says nothing."""
    config, scores = model.config, {}
    for layer in range(config.depth):
        if 0 in config.state(layer):
            continue
        for backward, states in enumerate(config.state(layer)):
            at, s = f"layers.{layer}.mixer.", "_b" if backward else ""
            read = values[f"{at}x_proj{s}.weight"][config.rank + states :].sum() + values[f"{at}D{s}"].sum()
            scores[layer, bool(backward)] = abs(float(read))
    order: list[tuple[int, bool]] = []
    for layer, backward in sorted(scores, key=lambda place: scores[place]):
        if (layer, not backward) not in order:
            order.append((layer, backward))

    def smaller(count: int) -> VisionMamba:
        small = model
        for layer, backward in order[:count]:
            small = remove_direction(small, layer, backward=backward)
        return small

    return smaller, len(order)


def _by_residual(model: VisionMamba, values: Values, multiple: int) -> Smaller:
    """Channels of the residual stream by all tensors that have them."""
    dim = model.config.dim
    members = tuple(Member(name, at) for name, at in residual_tensors(model.state_dict()).items())
    order = sum_over_units(Axis("residual", dim, members), dict(values)).abs().argsort(descending=True).tolist()
    step = min(multiple, dim)

    def smaller(count: int) -> VisionMamba:
        return cut_residual(model, order[: dim - count * step]) if count else model

    return smaller, (dim - 1) // step


def is_coarse(kinds: tuple[str, ...] | None) -> str | None:
    """Return the coarse kind that is asked for; None if there is none.

    Raises:
        ValueError: It is asked for together with others.
    """
    found = [kind for kind in kinds or () if kind in COARSE]
    if found and len(kinds or ()) > 1:
        raise ValueError(
            f"--axes: {found[0]} must be alone, got {','.join(kinds or ())}; "
            "prune twice, the second time with --weights FOLDER of the first"
        )
    return cast("str | None", found[0] if found else None)
