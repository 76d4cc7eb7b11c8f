"""Which weights are zero: masks by parameter name, how they are chosen, and files of them.

A mask is boolean, true where a weight is kept. Scores have the shape of their weights; low ones go first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checks import refuse
from .sparsity import Scope

Masks = dict[str, Tensor]

HEAD = "head.weight"


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that may be pruned: of linear layers and convolutions.

    Norms, biases, A, D, positions, the class token and the steps' projections are left alone: they are small, and the
    recurrence is sensitive to them.
    """
    found = {}
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and not last.startswith("dt_proj"):
            found[f"{name}.weight"] = module.weight
    return found


def layer_rates(
    shapes: Mapping[str, torch.Size],
    sparsity: float,
    scope: Scope,
    *,
    head_factor: float = 1.0,
) -> dict[str, float]:
    """Return the sparsity of each layer for scopes "layer" and "erk".

    "layer" gives every layer the same, the head `head_factor` times that. "erk" keeps a share of each layer that grows
    with the sum of its sizes over their product, scaled so that the whole has the wanted sparsity; layers that would
    keep more than all stay dense.

    Source: Evci et al. 2019, arXiv:1911.11134, section 3 (Erdos-Renyi kernel).
    """
    if scope == "layer":
        return {name: sparsity * (head_factor if name == HEAD else 1.0) for name in shapes}
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        kept = (1 - sparsity) * sum(math.prod(s) for s in shapes.values()) - sum(math.prod(shapes[n]) for n in dense)
        weight = sum(raw[n] * math.prod(shapes[n]) for n in shapes if n not in dense)
        factor = kept / weight if weight else 0.0
        over = {n for n in shapes if n not in dense and factor * raw[n] > 1}
        if not over:
            return {n: 0.0 if n in dense else 1 - max(0.0, factor * raw[n]) for n in shapes}
        dense |= over


def choose(
    scores: Mapping[str, Tensor],
    sparsity: float,
    scope: Scope,
    *,
    before: Mapping[str, Tensor] | None = None,
    head_factor: float = 1.0,
) -> Masks:
    """Keep the weights with the highest scores.

    Args:
        scores: By name.
        sparsity: Share of zeros.
        scope: See `SparsityConfig`.
        before: Masks so far: what they prune stays pruned.
        head_factor: See `SparsityConfig`.

    Returns:
        Masks with exactly round(sparsity * count) zeros, in each layer or in all together for "global" (more if
        `before` prunes more).
    """
    ranked = {}
    for name, score in scores.items():
        wide = score.detach().float()
        ranked[name] = wide if before is None else wide.masked_fill(~before[name], -math.inf)
    if scope != "global":
        shapes = {name: score.shape for name, score in scores.items()}
        rates = layer_rates(shapes, sparsity, scope, head_factor=head_factor)
        masks = {name: _highest(score, round((1 - rates[name]) * score.numel())) for name, score in ranked.items()}
    else:
        flat = torch.cat([score.flatten() for score in ranked.values()])
        kept = _highest(flat, round((1 - sparsity) * flat.numel()))
        parts = kept.split([score.numel() for score in ranked.values()])
        masks = {name: part.view_as(ranked[name]) for name, part in zip(ranked, parts, strict=True)}
    return masks if before is None else {name: mask & before[name] for name, mask in masks.items()}


def _highest(score: Tensor, count: int) -> Tensor:
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    if count > 0:
        mask[score.flatten().topk(count).indices] = True
    return mask.view_as(score)


def sparsity_of(masks: Mapping[str, Tensor]) -> float:
    """Return the share of zeros."""
    total = sum(mask.numel() for mask in masks.values())
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / max(1, total)


def per_layer(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the share of zeros of every layer."""
    return {name: 1 - float(mask.float().mean()) for name, mask in masks.items()}


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set what is pruned to zero.

    Raises:
        ValueError: The masks are of another network: names or shapes do not fit.
    """
    parameters = dict(model.named_parameters())
    check_fit(masks, {name: p.shape for name, p in parameters.items()})
    for name, mask in masks.items():
        parameters[name].mul_(mask.to(parameters[name].device))


def check_fit(masks: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Refuse masks of another network; the message names the first that does not fit."""
    for name, mask in masks.items():
        if name not in shapes:
            refuse("masks", "file", "of this network", f"a mask for {name}, which it lacks", "use its own masks")
        if mask.shape != shapes[name]:
            found = f"{tuple(mask.shape)} for {name}, whose weights are {tuple(shapes[name])}"
            refuse("masks", "file", "of this network", found, "use the masks of this checkpoint")


def save_masks(file: Path, masks: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write masks as safetensors, one byte a weight, with facts about them as metadata."""
    from safetensors.torch import save_file

    half = file.with_name(file.name + ".tmp")
    plain = {name: mask.to("cpu", torch.uint8).contiguous() for name, mask in masks.items()}
    facts = {"format": "vim-compress masks", "sparsity": f"{sparsity_of(masks):.6f}", "about": json.dumps(dict(about))}
    save_file(plain, half, metadata=facts)
    half.replace(file)


def load_masks(file: str | Path) -> Masks:
    """Read what `save_masks` wrote.

    Raises:
        ValueError: It is missing or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as stream:
            if (stream.metadata() or {}).get("format") != "vim-compress masks":
                refuse("masks", "file", "one of vim-compress masks", str(file), "a run writes masks.safetensors")
            return {name: stream.get_tensor(name).bool() for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"masks: {file} cannot be read: {error}; a run writes masks.safetensors") from error
