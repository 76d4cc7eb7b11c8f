"""Upscale a picture that is in memory: any depth, grey or colour, with or without alpha, in tiles if need be."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .checks import refuse
from .ensemble import SelfEnsemble
from .memory import LARGEST_AUTO_TILE, auto_tile, free_memory, network_bytes_per_pixel
from .tiling import GRID, OVERLAP, SMALLEST_TILE, check_tile, tile_count, upscale_tiled

Precision = Literal["fp32", "bf16", "fp16"]
Tile = int | Literal["auto", "full"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return the device that a name such as "auto", "cpu", "cuda", "cuda:1" or "mps" stands for.

    "auto" is the first CUDA device, or the CPU without one.

    Raises:
        ValueError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        refuse("device", "device", "auto, cpu, cuda, cuda:N or mps", repr(name), "auto picks one")
    if device.type not in ("cpu", "cuda", "mps"):
        refuse("device", "device", "auto, cpu, cuda, cuda:N or mps", repr(name), "auto picks one")
    count = torch.cuda.device_count() if device.type == "cuda" else int(torch.backends.mps.is_available())
    if device.type != "cpu" and (device.index or 0) >= count:
        refuse("device", "device", f"one that PyTorch sees here ({count} of type {device.type})", repr(name), "use cpu")
    return device


def upscale(
    model: nn.Module,
    image: NDArray,
    *,
    scale: int | None = None,
    tile: Tile = "auto",
    overlap: int = OVERLAP,
    precision: Precision = "fp32",
    self_ensemble: bool = False,
    progress: Callable[[int, int], None] | None = None,
    notify: Callable[[str], None] | None = None,
) -> NDArray:
    """Upscale one picture with a network.

    Grey is given to the network as three equal channels and taken back as their mean. Alpha goes through the network
    the same way; where it is fully opaque or transparent all around, it stays so exactly. Colours under fully
    transparent pixels are replaced by the nearest visible ones first, so that they do not bleed into the edges.

    Args:
        model: Upscales (1, 3, h, w) in [0, 1] to (1, 3, s * h, s * w); runs where its parameters are.
        image: (H, W) grey, or (H, W, C) with C 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; uint8 or uint16.
        scale: s; None takes `model.config.scale`.
        tile: Largest side of a tile in input pixels, a multiple of 16; "full" for the whole picture at once; "auto"
            for what half of the free memory allows, at most 512.
        overlap: Pixels that neighbouring tiles share, a multiple of 16.
        precision: Of the network's arithmetic (autocast); blending is always float32.
        self_ensemble: Average over the eight flips and transpositions; eight times slower.
        progress: Called with (done, total) after every tile.
        notify: Called with a message if the memory is not enough and the tiles are halved.

    Returns:
        (s * H, s * W) or (s * H, s * W, C) in the input's dtype.

    Raises:
        ValueError: Wrong shape, dtype or option; or the result does not fit into memory.
    """
    if image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] > 4):
        wanted = "(H, W) or (H, W, C) with 1 to 4 channels, and at least one pixel"
        refuse("upscale", "image", wanted, image.shape, "put channels last, one picture at a time")
    if image.dtype not in (np.uint8, np.uint16):
        refuse("upscale", "image", "uint8 or uint16", image.dtype, "scale it to 0..255 and round it")
    scale = _scale_of(model, scale)
    device = _device_of(model)
    _check_room(image, scale)
    layers = _Layers(image)
    run = network_runner(model, device, precision, self_ensemble=self_ensemble)
    side = tile_for(model, (image.shape[0], image.shape[1]), run, tile=tile, overlap=overlap)
    while True:
        try:
            shared = overlap_for(side, overlap)
            outputs = _upscale_layers(layers.inputs, run, scale, tile=side, overlap=shared, progress=progress)
            return layers.assemble(outputs, scale)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            side = _halved(side, image, error, notify)
        torch.cuda.empty_cache()  # outside the handler, which keeps the failed tile's tensors alive


def _upscale_layers(
    layers: list[NDArray],
    run: Callable[[Tensor], Tensor],
    scale: int,
    *,
    tile: int,
    overlap: int,
    progress: Callable[[int, int], None] | None,
) -> list[NDArray]:
    total = sum(tile_count(layer.shape[0], layer.shape[1], tile, overlap) for layer in layers)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return [upscale_tiled(run, x, scale=scale, tile=tile, overlap=overlap, progress=step) for x in layers]


def _scale_of(model: nn.Module, scale: int | None) -> int:
    if scale is None:
        scale = getattr(getattr(model, "config", None), "scale", None)
    if not isinstance(scale, int) or scale < 1:
        refuse("upscale", "scale", "a whole number of at least 1", scale, "give the model's upscaling factor")
    return scale


def _check_room(image: NDArray, scale: int) -> None:
    """Refuse a result that the memory cannot hold, before the machine starts to swap or kills the process."""
    channels = image.shape[2] if image.ndim == 3 else 1
    layers = 3 * (1 + (channels in (2, 4)))  # the network's results are RGB, also for grey and alpha
    needed = image.shape[0] * image.shape[1] * scale**2 * image.itemsize * (layers + channels)
    free = free_memory(torch.device("cpu"))
    if needed > free:
        height, width = image.shape[0] * scale, image.shape[1] * scale
        found = f"{width}x{height} out, which takes {needed / 1e9:.1f} GB of the free {free / 1e9:.1f} GB"
        refuse("upscale", "image", "small enough for the memory", found, "make it smaller or cut it")


def tile_for(
    model: nn.Module,
    size: tuple[int, int],
    run: Callable[[Tensor], Tensor],
    *,
    tile: Tile = "auto",
    overlap: int = OVERLAP,
    largest: int = LARGEST_AUTO_TILE,
) -> int:
    """Return the side of the tiles for one picture; not below the picture's sides if it is done in one piece.

    Args:
        model: The network.
        size: Rows and columns of the input.
        run: The network in its precision.
        tile: As for `upscale`.
        overlap: As for `upscale`.
        largest: Limit of "auto".

    Raises:
        ValueError: `tile` or `overlap` does not fit.
    """
    whole = max(SMALLEST_TILE, -(-max(size) // GRID) * GRID)
    if isinstance(tile, int):
        check_tile(tile, overlap)
        return tile
    if tile == "auto":
        device = _device_of(model)
        per_pixel = network_bytes_per_pixel(model, device, run)
        side = auto_tile(*size, bytes_per_pixel=per_pixel, free=free_memory(device), largest=largest)
    else:
        side = whole
    check_tile(side, overlap_for(side, overlap))
    return side


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether PyTorch failed for want of memory, on a GPU or (in words only) on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def overlap_for(tile: int, overlap: int) -> int:
    """The overlap asked for, or half a tile where tiles became too small for it."""
    return min(overlap, tile // 2 // GRID * GRID)


def network_runner(
    model: nn.Module, device: torch.device, precision: Precision, *, self_ensemble: bool = False
) -> Callable[[Tensor], Tensor]:
    """Return a function that runs a network without gradients in a precision.

    Args:
        model: Upscales (1, 3, h, w) in [0, 1]; it is set to `eval`.
        device: Where its parameters are; inputs are moved there.
        precision: fp32, or autocast to bf16 or fp16.
        self_ensemble: Average over the eight flips and transpositions.

    Raises:
        ValueError: Unknown precision.
    """
    if precision not in ("fp32", "bf16", "fp16"):
        refuse("upscale", "precision", "fp32, bf16 or fp16", repr(precision), "fp32 is exact")
    network = SelfEnsemble(model) if self_ensemble else model
    model.eval()

    def run(x: Tensor) -> Tensor:
        half = _AUTOCAST.get(precision)
        cast: AbstractContextManager = torch.autocast(device.type, dtype=half) if half else nullcontext()
        with torch.inference_mode(), cast:
            return network(x.to(device))

    return run


def _halved(side: int, image: NDArray, error: Exception, notify: Callable[[str], None] | None) -> int:
    used = min(side, -(-max(image.shape[:2]) // GRID) * GRID)  # a tile larger than the picture is the picture
    if used <= SMALLEST_TILE:
        remedy = "close other programs, or use --device cpu instead of a GPU"
        raise ValueError(f"upscale: out of memory with tiles of {SMALLEST_TILE} pixels; {remedy}") from error
    smaller = max(SMALLEST_TILE, used // 2 // GRID * GRID)
    if notify is not None:
        notify(f"out of memory with tiles of {used} pixels; going on with {smaller}")
    return smaller


class _Layers:
    """A picture as the RGB layers that go through the network: colour, and alpha unless it is constant."""

    def __init__(self, image: NDArray) -> None:
        self.image = image
        planes = image[..., None] if image.ndim == 2 else image
        self.has_alpha = planes.shape[2] in (2, 4)
        self.grey = planes.shape[2] < 3
        colour, alpha = (planes[..., :-1], planes[..., -1]) if self.has_alpha else (planes, None)
        if alpha is not None:
            colour = _filled(colour, alpha)
        self.alpha = alpha
        self.constant = alpha is None or bool((alpha == alpha.flat[0]).all())
        self.inputs = [np.repeat(colour, 3, axis=2) if self.grey else colour]
        if alpha is not None and not self.constant:
            self.inputs.append(np.repeat(alpha[..., None], 3, axis=2))

    def assemble(self, outputs: list[NDArray], scale: int) -> NDArray:
        """Put the upscaled layers together in the shape and dtype of the input."""
        colour = _mean(outputs[0])[..., None] if self.grey else outputs[0]
        if self.alpha is None:
            return colour[..., 0] if self.image.ndim == 2 else colour
        if self.constant:
            alpha = np.full(colour.shape[:2], self.alpha.flat[0], colour.dtype)
        else:
            alpha = _with_flat_parts(_mean(outputs[1]), self.alpha, scale)
        return np.concatenate([colour, alpha[..., None]], axis=2)


def _mean(rgb: NDArray) -> NDArray:
    total = rgb[..., 0].astype(np.uint32)
    total += rgb[..., 1]
    total += rgb[..., 2]
    total += 1
    total //= 3
    return total.astype(rgb.dtype)


def _filled(colour: NDArray, alpha: NDArray) -> NDArray:
    """Give fully transparent pixels the colour of the nearest visible one."""
    import cv2

    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colour
    _, nearest = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    visible = ~hidden
    palette = np.zeros((int(nearest.max()) + 1, colour.shape[2]), colour.dtype)
    palette[nearest[visible]] = colour[visible]  # every visible pixel has a label of its own
    return palette[nearest]


def _with_flat_parts(alpha: NDArray, original: NDArray, scale: int) -> NDArray:
    """Keep alpha exactly 0 or full where the input's 5x5 neighbourhood is; networks are off by a level or two there."""
    import cv2

    peak = np.iinfo(alpha.dtype).max
    for value in (0, peak):
        flat = cv2.erode((original == value).astype(np.uint8), np.ones((5, 5), np.uint8))  # the border counts as flat
        alpha[np.repeat(np.repeat(flat, scale, axis=0), scale, axis=1).astype(bool)] = value
    return alpha
