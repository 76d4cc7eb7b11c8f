"""What is in a weights file, name by name: which network it is, what is missing, what is left over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .config import PRESETS, ModelConfig
from .keymap import CONFIG_TENSOR, DERIVED, from_published, is_published, parameter_shapes, published_config
from .weights import carried_config, find_config, read_state


@dataclass(frozen=True)
class KeyReport:
    """A file's names against those of the network that it is for; names are ours.

    Attributes:
        published: Whether the file has the names of the Contrast and HAT repositories.
        config: The network.
        taken: Names that fit.
        missing: Names of the network that the file lacks.
        unexpected: Names of the file that the network lacks.
        shapes: Name -> shape in the file and shape wanted.
        derived: Published buffers that are computed here and left out.
    """

    published: bool
    config: ModelConfig
    taken: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    derived: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the file can be loaded."""
        return not (self.missing or self.unexpected or self.shapes)

    @property
    def network(self) -> str:
        """Name of the preset, or what the network is made of."""
        scale = self.config.scale
        for name, make in PRESETS.items():
            known = make(scale) if scale in (2, 3, 4) else None
            if known is not None and self.config in (known, published_config(known)):
                return f"{name} x{scale}"
        depths = "+".join(map(str, self.config.depths))
        return f"{self.config.mixer}, {self.config.dim} channels, blocks {depths}, {self.config.upsampler} x{scale}"

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "layout": "published" if self.published else "ours",
            "network": self.network,
            "config": self.config.to_dict(),
            "fits": self.fits,
            "taken": len(self.taken),
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "shapes": {name: {"found": list(a), "wanted": list(b)} for name, (a, b) in self.shapes.items()},
            "derived": list(self.derived),
        }

    def lines(self) -> list[str]:
        """Return the report for a person."""
        text = [f"{self.network}, {'published' if self.published else 'our'} names", f"  {len(self.taken)} tensors fit"]
        if self.published and self.config.rotated_overlap_index:
            text.append("  position bias with the published, rotated offsets")
        elif self.published and self.config.overlap_attention and self.config.position == "table":
            text.append("  tables of the overlapping attention renumbered from rotated to true offsets")
        for what, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("computed here", self.derived),
        ):
            text += [f"  {what}: {name}" for name in names]
        text += [f"  of another shape: {name} is {a}, wanted {b}" for name, (a, b) in self.shapes.items()]
        return [*text, "  it loads" if self.fits else "  it does not load"]


def inspect_file(path: Path, scale: int) -> KeyReport:
    """Compare a weights file with the network that its configuration or its shapes tell.

    Args:
        path: .safetensors, .pth, .pt, .ckpt or .bin; nothing in it is run.
        scale: Assumed for weights under our names that do not carry a configuration.

    Raises:
        ValueError: It cannot be read, or belongs to no network of the family.
    """
    if not path.is_file():
        raise ValueError(f"--weights: {path} is no file; give a .safetensors or .pth file")
    state = read_state(path)
    carried = state.pop(CONFIG_TENSOR, None)
    published = is_published(state)
    config = find_config(state, scale, path) if carried is None else carried_config(carried)
    renamed, derived = _renamed(state, config, published)
    found = {name: tuple(x.shape) for name, x in renamed.items()}
    config = published_config(config) if published else config
    wanted = parameter_shapes(config)
    return KeyReport(
        published=published,
        config=config,
        taken=tuple(name for name in found if found[name] == wanted.get(name)),
        missing=tuple(name for name in wanted if name not in found),
        unexpected=tuple(name for name in found if name not in wanted),
        shapes={name: (found[name], wanted[name]) for name in found if found[name] != wanted.get(name, found[name])},
        derived=derived,
    )


def _renamed(
    state: dict[str, Tensor], config: ModelConfig, published: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the state under our names, where it has any there, and the names of published buffers."""
    if not published:
        return state, ()
    derived = tuple(name for name in state if DERIVED.search(name))
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        try:
            ours |= from_published({name: tensor}, config)
        except ValueError:  # a name of no network of the family stands for itself
            ours[name] = tensor
    return ours, derived
