"""What can be cut from a network: axes, each with every slice of every tensor that goes with one of its entries.

An axis is a set of units that may be removed together: inner channels, states, hidden channels, heads. Letters as in
`mixer` and `hybrid`: E inner channels, N states, R rank, X and Z halves of a scan mixer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .checks import refuse
from .config import CnnConfig, MambaVisionConfig, ModelConfig, VimConfig

AXES = {"vim": ("inner", "state"), "mambavision": ("inner", "hidden", "heads", "x", "z")}  # kinds, by family
DEFAULT_AXES = {"vim": ("inner",), "mambavision": ("inner", "hidden", "heads")}
MULTIPLES = {"inner": 16, "hidden": 16, "x": 16, "z": 16, "state": 2, "heads": 1}  # what tensor cores like


@dataclass(frozen=True)
class Member:
    """A tensor's part in an axis: unit i owns `unit` rows of dimension `dim` from each of `starts` + i * unit on."""

    tensor: str
    dim: int
    starts: tuple[int, ...] = (0,)
    unit: int = 1


@dataclass(frozen=True)
class Axis:
    """Units that can be removed.

    Attributes:
        name: As in `widths`: "layers.3.inner", "levels.2.blocks.0.hidden".
        size: Units now.
        members: All tensors that have a part in it.
        gate: Name of the tensor with one factor for each unit, if the network has such gates.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    gate: str | None = None

    @property
    def kind(self) -> str:
        """Last part of the name: "inner", "state", ..."""
        return self.name.rpartition(".")[2].removesuffix("_b")


def find_axes(model: nn.Module, kinds: tuple[str, ...] | None = None) -> list[Axis]:
    """Return the axes of a network in the order of its layers.

    Args:
        model: `VisionMamba` or `MambaVision` with the selective scan.
        kinds: Kinds of axes; None takes those that are cut by default.

    Raises:
        ValueError: Its state-space model or squeeze cannot be cut, or a kind is unknown.
    """
    config: ModelConfig = model.config  # pyright: ignore[reportAssignmentType]
    if isinstance(config, CnnConfig):
        refuse("find_axes", "model", "a Vim or MambaVision", config.family, "the plain network is for comparison")
    known = AXES[config.family]
    for kind in kinds or ():
        if kind not in known:
            refuse("find_axes", "axes", f"of {', '.join(known)} for {config.family}", repr(kind), "choose among these")
    if config.mixer != "mamba":
        refuse("find_axes", "mixer", "'mamba'", repr(config.mixer), "only the selective scan can be cut")
    if config.se == "inner":
        refuse("find_axes", "se", "'none' or 'output'", "'inner'", "its squeeze mixes what would be cut")
    names = set(dict(model.named_parameters())) | set(dict(model.named_buffers()))
    wanted = kinds or DEFAULT_AXES[config.family]
    axes = _vim_axes(config) if isinstance(config, VimConfig) else _mambavision_axes(config)
    return [_existing(axis, names) for axis in axes if axis.kind in wanted]


def _existing(axis: Axis, names: set[str]) -> Axis:
    """Leave out what this network does not have: biases, gates, one of the directions."""
    members = tuple(m for m in axis.members if m.tensor in names)
    return Axis(axis.name, axis.size, members, axis.gate if axis.gate in names else None)


def _vim_axes(config: VimConfig) -> list[Axis]:
    axes = []
    for layer in range(config.depth):
        at, inner = f"layers.{layer}.mixer.", config.inner(layer)
        members = [Member(f"{at}in_proj.{p}", 0, (0, inner)) for p in ("weight", "bias")]
        for suffix, log in (("", "A_log"), ("_b", "A_b_log")):
            members += [
                Member(f"{at}{conv}{suffix}.{p}", 0) for conv in ("conv1d", "conv2d") for p in ("weight", "bias")
            ]
            members += [Member(f"{at}x_proj{suffix}.weight", 1), Member(f"{at}{log}", 0), Member(f"{at}D{suffix}", 0)]
            members += [Member(f"{at}dt_proj{suffix}.{p}", 0) for p in ("weight", "bias")]
        members += [Member(f"{at}gate", 0), Member(f"{at}out_proj.weight", 1)]
        axes.append(Axis(f"layers.{layer}.inner", inner, tuple(members), f"{at}gate"))
        for states, suffix, log in zip(config.state(layer), ("", "_b"), ("A_log", "A_b_log"), strict=True):
            if not states:
                continue
            rows = Member(f"{at}x_proj{suffix}.weight", 0, (config.rank, config.rank + states))
            axes.append(Axis(f"layers.{layer}.state{suffix}", states, (rows, Member(f"{at}{log}", 1))))
    return axes


def _mambavision_axes(config: MambaVisionConfig) -> list[Axis]:
    axes = []
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            at = f"levels.{stage}.blocks.{block}."
            if stage < 2:
                axes.append(_conv_axis(config, stage, block, at))
                continue
            hidden = config.width(stage, block, "hidden")
            members = [Member(f"{at}mlp.fc1.{p}", 0) for p in ("weight", "bias")]
            members += [Member(f"{at}mlp.gate", 0), Member(f"{at}mlp.fc2.weight", 1)]
            axes.append(Axis(f"{at}hidden", hidden, tuple(members), f"{at}mlp.gate"))
            if config.is_attention(stage, block):
                axes.append(_head_axis(config, stage, block, f"{at}mixer.", f"{at}heads"))
            else:
                axes += _scan_axes(config, stage, block, at)
    return axes


def _conv_axis(config: MambaVisionConfig, stage: int, block: int, at: str) -> Axis:
    inner = config.width(stage, block, "inner")
    norm = [Member(f"{at}norm1.{p}", 0) for p in ("weight", "bias", "running_mean", "running_var")]
    if config.conv_blocks == "full":
        members = [Member(f"{at}conv1.{p}", 0) for p in ("weight", "bias")]
        members += [*norm, Member(f"{at}conv2.weight", 1)]
    else:
        members = [Member(f"{at}conv1.1.{p}", 0) for p in ("weight", "bias")]
        members += [*norm, Member(f"{at}conv2.0.weight", 0), Member(f"{at}conv2.1.weight", 1)]
    return Axis(f"{at}inner", inner, tuple(members), f"{at}norm1.weight")


def _head_axis(config: MambaVisionConfig, stage: int, block: int, at: str, name: str) -> Axis:
    heads = config.width(stage, block, "heads")
    size = config.stage_dim(stage) // config.heads[stage]
    thirds = tuple(k * heads * size for k in range(3))
    members = [Member(f"{at}qkv.{p}", 0, thirds, size) for p in ("weight", "bias")]
    members += [Member(f"{at}gate", 0), Member(f"{at}proj.weight", 1, (0,), size)]
    return Axis(name, heads, tuple(members), f"{at}gate")


def _scan_axes(config: MambaVisionConfig, stage: int, block: int, at: str) -> list[Axis]:
    x, z = (config.width(stage, block, axis) for axis in ("x", "z"))
    mixer = f"{at}mixer."
    of_x = [Member(f"{mixer}in_proj.weight", 0), Member(f"{mixer}conv1d_x.weight", 0), Member(f"{mixer}A_log", 0)]
    of_x += [Member(f"{mixer}x_proj.weight", 1), Member(f"{mixer}D", 0), Member(f"{mixer}gate_x", 0)]
    of_x += [Member(f"{mixer}dt_proj.{p}", 0) for p in ("weight", "bias")] + [Member(f"{mixer}out_proj.weight", 1)]
    of_z = [Member(f"{mixer}in_proj.weight", 0, (x,)), Member(f"{mixer}conv1d_z.weight", 0)]
    of_z += [Member(f"{mixer}gate_z", 0), Member(f"{mixer}out_proj.weight", 1, (x,))]
    return [
        Axis(f"{at}x", x, tuple(of_x), f"{mixer}gate_x"),
        Axis(f"{at}z", z, tuple(of_z), f"{mixer}gate_z"),
    ]
