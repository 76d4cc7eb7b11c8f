"""Draw maps of a network's inside as PNG panels: attributions beside each other, norms with colour bars.

matplotlib draws them and is imported only here. H, W are the size of what is mapped, in input pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .lam import Attribution, density
from .norms import Norms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL = 3.2  # inches a side
DPI = 100
INSTALL = "pip install 'hybrid-sr[plots]'"


def draw_attributions(
    original: NDArray[np.uint8], found: Sequence[tuple[str, NDArray[np.uint8], Attribution]], path: Path
) -> None:
    """Save one row a network: its result with the explained part framed, the map, the density of the map.

    Args:
        original: What the result should be, or the input enlarged; (s * H, s * W, 3).
        found: Name, result (s * H, s * W, 3), and attribution of every network.
        path: PNG file.
    """
    figure = _figure(len(found), 3, original.shape)
    for row, (name, result, attribution) in zip(figure.subplots(len(found), 3, squeeze=False), found, strict=True):
        share = attribution.cross()
        scale = attribution.scale
        row[0].imshow(result)
        _frame(row[0], attribution)
        row[0].set_title(name, fontsize=9)
        for axis, values, title in (
            (row[1], attribution.weights, f"diffusion index {attribution.diffusion_index:.2f}"),
            (row[2], _spread(attribution.weights), f"arms / elsewhere {share['ratio']:.2f}"),
        ):
            axis.imshow(overlay(original, values, scale))
            _frame(axis, attribution)
            axis.set_title(title, fontsize=9)
    _save(figure, path)


def draw_norms(found: Sequence[tuple[str, Sequence[Norms]]], path: Path) -> None:
    """Save one row a network, one map a group, each with its own colour bar.

    Args:
        found: Name and norms of every network.
        path: PNG file.
    """
    columns = max(len(norms) for _, norms in found)
    figure = _figure(len(found), columns, found[0][1][0].map.shape, wider=1.25)
    for row, (name, norms) in zip(figure.subplots(len(found), columns, squeeze=False), found, strict=True):
        for axis in row:
            axis.axis("off")
        for axis, norm in zip(row, norms, strict=False):
            figures = norm.figures()
            picture = axis.imshow(norm.map, cmap="viridis")
            figure.colorbar(picture, ax=axis, fraction=0.046, pad=0.03).ax.tick_params(labelsize=7)
            title = f"{norm.name}\nmax {figures['max']:.3g}, max / median {figures['max_over_median']:.2f}"
            axis.set_title(title if axis is not row[0] else f"{name}\n{title}", fontsize=8)
    _save(figure, path)


def overlay(image: NDArray[np.uint8], weights: NDArray, scale: int) -> NDArray[np.uint8]:
    """Blend weights in [0, 1], pixels repeated, half and half with a picture: white is 0, red is 1.

    The colours are the upper half of matplotlib's "seismic".
    """
    from matplotlib import colormaps

    coloured = colormaps["seismic"](0.5 + 0.5 * weights)[..., :3].repeat(scale, 0).repeat(scale, 1)
    return np.rint(255 * (0.5 * coloured + 0.5 * image / 255)).astype(np.uint8)


def _spread(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return density(weights) if weights.any() else weights


def _frame(axis: Any, attribution: Attribution) -> None:
    from matplotlib.patches import Rectangle

    x, y = attribution.at
    side = attribution.window
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), side, side, fill=False, edgecolor="lime", linewidth=1.2))
    axis.axis("off")


def _figure(rows: int, columns: int, shape: Sequence[int], wider: float = 1.0) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError(f"drawing needs matplotlib; {INSTALL}") from error
    tall = min(2.0, max(0.4, shape[0] / shape[1]))
    return Figure(figsize=(PANEL * columns * wider, (PANEL * tall + 0.35) * rows), layout="constrained", dpi=DPI)


def _save(figure: Figure, path: Path) -> None:
    half = path.with_name(f".{path.stem}.part.png")
    figure.savefig(half)
    half.replace(path)
