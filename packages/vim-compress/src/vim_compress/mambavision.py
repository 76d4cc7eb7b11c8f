"""MambaVision with the interface of timm's models.

B batch, C channels, H, W a map's height and width, W x W windows of L = W * W tokens; stages count from 0.
"""

from typing import Any, Literal, cast

import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .checks import refuse
from .config import MambaVisionConfig
from .decay import undecayed
from .features import feature_take_indices
from .hybrid import ConvBlock, HybridBlock, make_rates
from .reshape import with_classes, with_image
from .saved import SavedModel
from .windows import crop, join_windows, pad_to_windows, split_windows

STEM_EPS = 1e-4


class Stem(nn.Module):
    """Two 3 x 3 convolutions with strides, each with batch norm and ReLU."""

    def __init__(self, config: MambaVisionConfig) -> None:
        super().__init__()
        first, second = config.stem_strides
        self.conv_down = nn.Sequential(
            nn.Conv2d(config.channels, config.in_dim, 3, first, 1, bias=False),
            nn.BatchNorm2d(config.in_dim, eps=STEM_EPS),
            nn.ReLU(),
            nn.Conv2d(config.in_dim, config.dim, 3, second, 1, bias=False),
            nn.BatchNorm2d(config.dim, eps=STEM_EPS),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, C, H', W')."""
        return self.conv_down(x)


class Downsample(nn.Module):
    """A 3 x 3 convolution that halves the map and doubles the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 2 C, H / 2, W / 2), rounded up."""
        return self.reduction(x)


class Stage(nn.Module):
    """The blocks of one size of map, and what makes the next one.

    Stages 0 and 1 are convolutions. In stages 2 and 3 the map is padded with zeros at the right and bottom to whole
    windows, and both the scan and window attention stay inside a window; a map that one window covers is one window.
    """

    def __init__(self, config: MambaVisionConfig, stage: int) -> None:
        super().__init__()
        self.window = config.windows[stage]
        self.conv = stage < 2
        self.whole_map = config.attention in ("band", "neighbourhood")
        kind = ConvBlock if self.conv else HybridBlock
        rates = make_rates(config)
        start = sum(config.depths[:stage])
        self.blocks = nn.ModuleList(kind(config, stage, b, rates[start + b]) for b in range(config.depths[stage]))
        self.downsample = Downsample(config.stage_dim(stage)) if stage < 3 else None
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, H, W) to the next stage's input and to what the blocks put out."""
        features = self.run_blocks(x)
        return (features if self.downsample is None else self.downsample(features)), features

    def run_blocks(self, x: Tensor) -> Tensor:
        """Run the blocks on (B, C, H, W)."""
        if self.conv:
            for block in self.blocks:
                x = self._run(block, x, None)
            return x
        height, width = int(x.shape[2]), int(x.shape[3])
        x = x.permute(0, 2, 3, 1)
        padded = pad_to_windows(x, self.window)
        grid = (padded.shape[1] // self.window, padded.shape[2] // self.window)
        tokens = split_windows(padded, self.window)
        for block in self.blocks:
            tokens = self._run(block, tokens, (grid[0], grid[1], height, width))
        joined = join_windows(tokens, self.window, grid)
        return crop(joined, height, width).permute(0, 3, 1, 2)

    def _run(self, block: nn.Module, x: Tensor, place: tuple[int, int, int, int] | None) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, x, place, use_reentrant=False))
        return block(x, place)


class MambaVision(SavedModel, tags=["mamba-vision"]):
    """MambaVision: two stages of convolutions, two of windows with scans first and attention last.

    State dict as published: patch_embed.conv_down, levels.s.{blocks.b, downsample.reduction.0}, norm, head.

    Args:
        config: What it is made of.
        drop_rate: Dropout before the head, while training.

    Attributes:
        num_classes: Outputs; 0 without a head.

    Source: Hatamizadeh and Kautz 2024, arXiv:2407.08083.
    """

    config: MambaVisionConfig

    def __init__(self, config: MambaVisionConfig, *, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.drop_rate = drop_rate
        self.num_classes = config.classes
        self.num_features = self.head_hidden_size = self.embed_dim = config.stage_dim(3)
        scale = config.stem_strides[0] * config.stem_strides[1]
        self.feature_info = [
            {"num_chs": config.stage_dim(s), "reduction": scale << s, "module": f"levels.{s}"} for s in range(4)
        ]
        self.patch_embed = Stem(config)
        self.levels = nn.ModuleList(Stage(config, stage) for stage in range(4))
        self.norm = nn.BatchNorm2d(self.num_features)
        self.global_pool = SelectAdaptivePool2d(pool_type="avg", flatten=True)
        self.head = nn.Linear(self.num_features, config.classes) if config.classes else nn.Identity()
        self.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        """Classify pictures.

        Args:
            x: (B, channels, H, W), normalised by the configuration's mean and std; any size.

        Returns:
            (B, classes); (B, 8 * dim) without a head.

        Raises:
            ValueError: `x` has another shape.
        """
        return self.forward_head(self.forward_features(x))

    def _stem(self, x: Tensor) -> Tensor:
        channels = self.config.channels
        if x.dim() != 4 or x.shape[1] != channels or min(x.shape) < 1:
            refuse("MambaVision", "x", f"(B, {channels}, H, W)", tuple(x.shape), "stack pictures along axis 0")
        return self.patch_embed(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalised last map, (B, 8 * dim, H', W')."""
        x = self._stem(x)
        for stage in self.levels:
            x, _ = stage(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify a last map.

        Args:
            x: (B, 8 * dim, H', W'), from `forward_features`.
            pre_logits: Return what the head sees, (B, 8 * dim).
        """
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the maps of stages, after their blocks and before they are halved, as timm's models do.

        Args:
            x: (B, channels, H, W).
            indices: Stages; a number takes that many of the last, None all.
            norm: Normalise the last stage's map.
            stop_early: Leave out the stages after the last one asked for.
            output_fmt: "NCHW" only.
            intermediates_only: Leave out the final map.

        Returns:
            A list of (B, C, H', W'), or the normalised last map and a list.
        """
        if output_fmt != "NCHW":
            refuse("forward_intermediates", "output_fmt", "'NCHW'", repr(output_fmt), "the stages are maps")
        taken, last = feature_take_indices(len(self.levels), indices)
        x = self._stem(x)
        found = []
        for number, stage in enumerate(self.levels[: last + 1] if stop_early else self.levels):
            x, features = stage(x)
            if number in taken:
                found.append(self.norm(features) if norm and number == 3 else features)
        return found if intermediates_only else (self.norm(x) if x.shape[1] == self.num_features else x, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last one that is asked for, and norm and head if so; return the stages."""
        taken, last = feature_take_indices(len(self.levels), indices)
        self.levels = self.levels[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Draw a new head.

        Args:
            num_classes: Its outputs; 0 for none.
            global_pool: A pooling of timm's SelectAdaptivePool2d ("avg", "max", ...), "" for the map; None keeps it.
        """
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.num_classes = num_classes
        self.config = with_classes(self.config, num_classes)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        _init(self.head)
        self.head.to(next(self.parameters()).device)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Note the usual size of pictures; there is nothing to resample, any size works."""
        size = (img_size, img_size) if isinstance(img_size, int) else (int(img_size[0]), int(img_size[1]))
        self.config = with_image(self.config, size)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass to save memory."""
        for stage in self.levels:
            cast(Stage, stage).grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that must not decay: A, D, gates, layer scale."""
        return undecayed(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how parameters fall into stem and blocks, for layer-wise rates."""
        if coarse:
            return {"stem": r"^patch_embed", "blocks": r"^levels\.(\d+)"}
        blocks = [
            (r"^levels\.(\d+)\.blocks\.(\d+)", None),
            (r"^levels\.(\d+)\.downsample", (0,)),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": blocks}


def _init(module: nn.Module) -> None:
    """Draw as the published models do: every Linear from a cut normal of deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None and not getattr(module, "keeps_bias", False):
            nn.init.zeros_(module.bias)
