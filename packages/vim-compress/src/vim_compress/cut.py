"""Make a network physically smaller, or mask it to what the smaller one would compute (the oracle of every cut).

Both start from which units of each axis are kept. A cut returns an ordinary network with a configuration of its own,
which is saved and loaded like any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from .axes import Axis, Member, find_axes
from .checks import refuse
from .config import ModelConfig, VimConfig
from .models import Network, make_network
from .vim import VisionMamba

Kept = Mapping[str, Sequence[int]]  # units that stay, by axis


def cut(model: Network, kept: Kept) -> Network:
    """Remove units.

    Args:
        model: Is left as it is.
        kept: Numbers of the units that stay, by name of the axis; axes that are not named stay whole.

    Returns:
        A smaller network of the same kind on the same device, in eval mode.

    Raises:
        ValueError: An axis is unknown, or nothing of it would stay.
    """
    state = dict(model.state_dict())
    widths = dict(model.config.widths)
    stays: dict[tuple[str, int], Tensor] = {}  # all axes first: two may have parts in one dimension of a tensor
    for axis, units in _checked(model, kept):
        for member in axis.members:
            rows = rows_of(member, units, axis.size, state[member.tensor].shape[member.dim])
            place = (member.tensor, member.dim)
            stays[place] = stays[place] & rows if place in stays else rows
        widths[axis.name] = len(units)
    for (name, dim), rows in stays.items():
        state[name] = state[name].index_select(dim, rows.nonzero().flatten().to(state[name].device))
    return build(replace(model.config, widths=widths), state, model)


@torch.no_grad()
def mask(model: Network, kept: Kept) -> None:
    """Set to zero, in place, what `cut` would remove: afterwards both compute the same."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for axis, units in _checked(model, kept):
        for member in axis.members:
            tensor = tensors[member.tensor]
            stays = rows_of(member, units, axis.size, tensor.shape[member.dim]).to(tensor)
            shape = [1] * tensor.dim()
            shape[member.dim] = -1
            tensor.mul_(stays.view(shape))


def rows_of(member: Member, units: Sequence[int], size: int, rows: int) -> Tensor:
    """Tell of each row of a tensor's dimension whether it stays: those of kept units, and those no unit owns."""
    stays = torch.ones(rows, dtype=torch.bool)
    for start in member.starts:
        stays[start : start + size * member.unit] = False
        for unit in units:
            first = start + unit * member.unit
            stays[first : first + member.unit] = True
    return stays


def _checked(model: Network, kept: Kept) -> list[tuple[Axis, list[int]]]:
    from .axes import AXES

    axes = {axis.name: axis for axis in find_axes(model, AXES[model.config.family])}
    pairs = []
    for name, units in kept.items():
        if name not in axes:
            known = ", ".join(list(axes)[:4])
            refuse("cut", "kept", f"axes of this network ({known}, ...)", repr(name), "see find_axes")
        chosen = sorted(set(units))
        if not chosen or chosen[0] < 0 or chosen[-1] >= axes[name].size:
            wanted = f"at least one of 0 to {axes[name].size - 1}"
            refuse("cut", f"kept[{name}]", wanted, str(list(units))[:60], "a whole block goes by remove_blocks")
        pairs.append((axes[name], chosen))
    return pairs


def build(config: ModelConfig, state: Mapping[str, Tensor], like: nn.Module) -> Network:
    """Make the network of a configuration with given weights, on the device and in the dtype of another."""
    first = next(like.parameters())
    model = make_network(config).to(first.device, first.dtype)
    model.load_state_dict(state)
    return model.eval()


def remove_blocks(model: VisionMamba, blocks: Sequence[int]) -> VisionMamba:
    """Remove whole blocks of a Vim; the residual stream goes past where they were.

    Raises:
        ValueError: There is no such block, or none would stay.
    """
    stay = [i for i in range(model.config.depth) if i not in set(blocks)]
    if not stay or not set(blocks) <= set(range(model.config.depth)):
        wanted = f"some of 0 to {model.config.depth - 1}, not all"
        refuse("remove_blocks", "blocks", wanted, list(blocks), "at least one block must stay")
    place = {f"layers.{old}.": f"layers.{new}." for new, old in enumerate(stay)}
    config = replace(model.config, depth=len(stay), widths=_renamed(_explicit(model.config), place))
    return cast(VisionMamba, build(config, _renamed(model.state_dict(), place), model))


def _renamed(values: Mapping[str, Tensor] | Mapping[str, int], place: Mapping[str, str]) -> dict:
    """Rename keys of blocks; those of blocks without a place are dropped."""
    renamed = {}
    for name, value in values.items():
        block = re.match(r"layers\.\d+\.", name)
        if block is None:
            renamed[name] = value
        elif block[0] in place:
            renamed[place[block[0]] + name.removeprefix(block[0])] = value
    return renamed


def _explicit(config: VimConfig) -> dict[str, int]:
    """Write every width out, so that it does not follow from others that change."""
    widths = {}
    for layer in range(config.depth):
        widths[f"layers.{layer}.inner"] = config.inner(layer)
        widths[f"layers.{layer}.state"], widths[f"layers.{layer}.state_b"] = config.state(layer)
    return widths | ({"stem": config.stem_width} if config.stem == "mobilenet" else {})


def remove_direction(model: VisionMamba, layer: int, *, backward: bool = True) -> VisionMamba:
    """Remove one direction of a block of a Vim.

    Raises:
        ValueError: There is no such block, or it has only that direction.
    """
    if not 0 <= layer < model.config.depth or 0 in model.config.state(layer):
        refuse("remove_direction", "layer", "a block with two directions", layer, "one direction must stay")
    at = f"layers.{layer}.mixer."
    gone = {f"{at}{name}" for name in direction_tensors(backward)}
    state = {name: value for name, value in model.state_dict().items() if name not in gone}
    widths = {**model.config.widths, f"layers.{layer}.state{'_b' if backward else ''}": 0}
    return cast(VisionMamba, build(replace(model.config, widths=widths), state, model))


def direction_tensors(backward: bool) -> list[str]:
    """Return the names, inside a mixer, of what only one direction uses."""
    s = "_b" if backward else ""
    names = [f"{part}{s}.{p}" for part in ("conv1d", "conv2d", "dt_proj") for p in ("weight", "bias")]
    return [*names, f"x_proj{s}.weight", "A_b_log" if backward else "A_log", f"D{s}"]


def cut_residual(model: VisionMamba, kept: Sequence[int]) -> VisionMamba:
    """Remove channels of a Vim's residual stream, in all blocks together.

    The norms divide by the number of channels; their weights and eps are scaled so that the result is what the full
    network computes with those channels at zero.

    Raises:
        ValueError: No channel, or one that does not exist; or the output is squeezed, over channels that would go.
    """
    old, chosen = model.config.dim, sorted(set(kept))
    if model.config.se == "output":
        refuse("cut_residual", "model", "without squeeze-and-excitation of the output", "se='output'", "cut inner")
    if not chosen or chosen[0] < 0 or chosen[-1] >= old:
        refuse(
            "cut_residual", "kept", f"some of 0 to {old - 1}", str(list(kept))[:60], "at least one channel must stay"
        )
    ratio = len(chosen) / old
    state = dict(model.state_dict())
    for name, dim in residual_tensors(state).items():
        state[name] = state[name].index_select(dim, torch.tensor(chosen, device=state[name].device))
        if name.endswith(("norm.weight", "norm_f.weight")):
            state[name] = state[name] / ratio**0.5
    eps = model.config.norm_eps / ratio
    config = replace(
        model.config, dim=len(chosen), dt_rank=model.config.rank, widths=_explicit(model.config), norm_eps=eps
    )
    return cast(VisionMamba, build(config, state, model))


def residual_tensors(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the tensors of a Vim that have the residual stream's channels, and in which dimension."""
    found = {"cls_token": 2, "pos_embed": 2, "patch_embed.proj.weight": 0, "patch_embed.proj.bias": 0}
    found |= {"norm_f.weight": 0, "head.weight": 1}
    for name in state:
        if name.startswith("layers."):
            last = name.split(".", 2)[2]
            dim = {"norm.weight": 0, "mixer.in_proj.weight": 1, "mixer.out_proj.weight": 0, "mixer.gamma": 0}.get(last)
            if dim is not None:
                found[name] = dim
    return {name: dim for name, dim in found.items() if name in state}


@torch.no_grad()
def fold_gates(model: Network) -> Network:
    """Multiply channel gates into the projection after them; the result has none and computes the same."""
    if not model.config.gates:
        return model
    state = dict(model.state_dict())
    for name in [n for n in state if n.rpartition(".")[2].startswith("gate")]:
        owner, _, last = name.rpartition(".")
        gate = state.pop(name)
        projection = next(n for n in ("out_proj", "fc2", "proj") if f"{owner}.{n}.weight" in state)
        weight = state[f"{owner}.{projection}.weight"]
        start = 0 if last != "gate_z" else weight.shape[1] - len(gate)
        unit = 1
        if projection == "proj":  # a gate for each head
            unit = weight.shape[1] // len(gate)
        factor = torch.ones(weight.shape[1], dtype=weight.dtype, device=weight.device)
        factor[start : start + len(gate) * unit] = gate.repeat_interleave(unit)
        state[f"{owner}.{projection}.weight"] = weight * factor
    return build(replace(model.config, gates=False), state, model)
