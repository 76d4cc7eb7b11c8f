"""Vision Mamba with the interface of timm's models.

B batch, M patches, L = M + 1 tokens (the class token is in the middle, at M // 2), C channels.
"""

import math
from typing import Any, Literal, cast

import torch
from ssm_kernels import rms_norm
from timm.layers.drop import DropPath
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .checks import refuse
from .config import VimConfig, grid_of
from .decay import undecayed
from .features import feature_take_indices
from .mixer import VimMixer
from .reshape import with_classes, with_image
from .saved import SavedModel


class RMSNorm(nn.Module):
    """Divide by the root mean square over the channels, in float32, and scale; after adding a residual if there is one.

    State dict: weight (C,).
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, change: Tensor | None = None, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        """Return the normalised sum of x and `change`, (..., C), and the sum, in the dtype of x; one pass on a GPU.

        Args:
            x: (..., C), float32 (or float64).
            change: What is added first, (..., C), of any dtype; None is zero.
            dtype: Of the normalised sum; None is that of x.
        """
        weight, dtype = self.weight, dtype or x.dtype
        if change is None:
            return rms_norm(x, weight, eps=self.eps, dtype=dtype), x
        return rms_norm(change, weight, residual=x, eps=self.eps, dtype=dtype)


class PatchEmbed(nn.Module):
    """One convolution that turns patches into tokens, row by row."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.patch, self.stride = config.patch, config.stride
        self.proj = nn.Conv2d(config.channels, config.dim, config.patch, config.stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, M, C)."""
        if x.is_cuda and self.stride == self.patch:  # convolutions of three channels miss the tensor cores
            return self.product(x)
        return self.proj(x).flatten(2).mT

    def product(self, x: Tensor) -> Tensor:
        """Do what `forward` does for patches that do not overlap, as one matrix product."""
        p, weight = self.patch, self.proj.weight
        rows, columns = x.shape[2] // p, x.shape[3] // p
        patches = x[:, :, : rows * p, : columns * p].unflatten(3, (columns, p)).unflatten(2, (rows, p))
        if x.is_contiguous(memory_format=torch.channels_last):  # colours last: longer runs in memory
            patches, weight = patches.permute(0, 2, 4, 3, 5, 1), weight.permute(0, 2, 3, 1)
        else:
            patches = patches.permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.reshape(len(x), rows * columns, -1), weight.flatten(1), self.proj.bias)


class Block(nn.Module):
    """Normalise the residual stream and mix it. What comes out is added by the next norm, in the same pass."""

    def __init__(self, config: VimConfig, layer: int) -> None:
        super().__init__()
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.mixer = make_mixer(config, layer)
        rate = config.drop_path * layer / max(1, config.depth - 1)
        self.drop_path = DropPath(rate) if rate else nn.Identity()

    def forward(
        self, residual: Tensor, change: Tensor | None, grid: tuple[int, int] | None, skip: int | None
    ) -> tuple[Tensor, Tensor]:
        """Run the block on residual + change, (B, L, C): return that sum, float32, and what must be added to it."""
        dtype, device = self.mixer.in_proj.weight.dtype, residual.device.type
        if dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):  # it knows no meta device
            dtype = torch.get_autocast_dtype(device)
        normed, residual = self.norm(residual, change, dtype)
        return residual, self.drop_path(self.mixer(normed, grid, skip))


def make_mixer(config: VimConfig, layer: int) -> VimMixer:
    """Build the mixer of one block."""
    if config.mixer != "mamba":
        from .linear import LinearMixer

        return cast(VimMixer, LinearMixer.for_vim(config))  # the same call and the same two projections
    return VimMixer(
        config.dim,
        inner=config.inner(layer),
        states=config.state(layer),
        d_conv=config.d_conv,
        rank=config.rank,
        average=config.average,
        gates=config.gates,
        se=config.se,
        se_ratio=config.se_ratio,
        token_conv=config.token_conv,
        init=config.init,
    )


class VisionMamba(SavedModel, tags=["vision-mamba"]):
    """Vision Mamba (Vim): patches and a class token in their middle, through blocks of bidirectional scans.

    State dict as published: cls_token, pos_embed (whose row M // 2 is the class token's), patch_embed.proj,
    layers.i.{norm, mixer}, norm_f, head.

    Args:
        config: What it is made of.
        dynamic_img_size: Take pictures of any size, resampling the position embedding each time; without it another
            size than the configuration's is an error.
        drop_rate: Dropout before the head, while training.

    Attributes:
        num_classes: Outputs; 0 without a head.
        grad_checkpointing: Recompute every block in the backward pass instead of keeping its activations.

    Source: Zhu et al. 2024, arXiv:2401.09417.
    """

    config: VimConfig

    def __init__(self, config: VimConfig, *, dynamic_img_size: bool = False, drop_rate: float = 0.0) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.dynamic_img_size, self.drop_rate = dynamic_img_size, drop_rate
        self.num_classes = config.classes
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        self.num_prefix_tokens = 0
        self.global_pool = "token"
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": dim, "reduction": config.stride, "module": f"layers.{i}"} for i in range(config.depth)
        ]
        if config.stem == "mobilenet":
            from .mobilenet import MobileStem

            self.patch_embed: nn.Module = MobileStem(config.channels, dim, config.patch, config.stem_width)
        else:
            self.patch_embed = PatchEmbed(config)
        patches = config.grid[0] * config.grid[1]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, dim))
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm_f = RMSNorm(dim, config.norm_eps)
        self.head = nn.Linear(dim, config.classes) if config.classes else nn.Identity()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the first weights as Vim does: see `VimConfig.init` for the one choice."""
        if isinstance(self.patch_embed, PatchEmbed):
            proj = self.patch_embed.proj
            nn.init.trunc_normal_(proj.weight, std=math.sqrt(1 / proj.weight[0].numel()) / 0.8796, a=-2.0, b=2.0)
            assert proj.bias is not None
            nn.init.zeros_(proj.bias)
        for embedding in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(embedding, std=0.02)
        for block in self.layers:
            out = cast(Block, block).mixer.out_proj
            nn.init.kaiming_uniform_(out.weight, a=math.sqrt(5))
            out.weight /= math.sqrt(self.config.depth)
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify pictures.

        Args:
            x: (B, channels, H, W), normalised by the configuration's mean and std.

        Returns:
            (B, classes); (B, C) without a head.

        Raises:
            ValueError: Pictures of another size without `dynamic_img_size`, or smaller than a patch.
        """
        return self.forward_head(self.forward_features(x))

    def tokens(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens of pictures with class token and positions, (B, L, C) float32, and rows and columns."""
        config = self.config
        if x.dim() != 4 or x.shape[1] != config.channels:
            refuse("VisionMamba", "x", f"(B, {config.channels}, H, W)", tuple(x.shape), "stack pictures along axis 0")
        size = (int(x.shape[2]), int(x.shape[3]))
        if min(size) < config.patch:
            refuse("VisionMamba", "x", f"at least {config.patch} pixels a side, one patch", size, "enlarge the picture")
        grid = grid_of(size, config.patch, config.stride)
        if grid != config.grid and not self.dynamic_img_size:
            remedy = "resize it, call set_input_size, or build with dynamic_img_size=True"
            refuse("VisionMamba", "x", f"a picture of {config.image[0]} x {config.image[1]} pixels", size, remedy)
        patches = self.patch_embed(x)
        middle = patches.shape[1] // 2
        token = self.cls_token.to(patches.dtype).expand(patches.shape[0], -1, -1)
        joined = torch.cat([patches[:, :middle], token, patches[:, middle:]], 1)
        positions = self.pos_embed if grid == config.grid else resize_positions(self.pos_embed, config.grid, grid)
        return joined + positions.to(torch.promote_types(joined.dtype, torch.float32)), grid

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalised tokens of pictures, (B, L, C), the class token at (L - 1) // 2."""
        residual, grid = self.tokens(x)
        change = None
        for layer in range(len(self.layers)):
            residual, change = self.run_block(layer, residual, change, grid)
        return self.finished(residual, change)

    def run_block(
        self, layer: int, residual: Tensor, change: Tensor | None, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Run one block on residual + change, (B, L, C): return that sum, and what must be added to it."""
        block = self.layers[layer]
        skip = None if self.config.se_class_token else (residual.shape[1] - 1) // 2
        if self.grad_checkpointing and torch.is_grad_enabled():
            found = checkpoint(block, residual, change, grid, skip, use_reentrant=False)
            return cast("tuple[Tensor, Tensor]", found)
        return block(residual, change, grid, skip)

    def finished(self, residual: Tensor, change: Tensor | None) -> Tensor:
        """Return residual + change, (B, L, C), normalised as the head wants it."""
        if isinstance(self.norm_f, RMSNorm):
            return self.norm_f(residual, change)[0]
        return self.norm_f(residual if change is None else residual + change)  # pruned, or another kind

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify normalised tokens.

        Args:
            x: (B, L, C), from `forward_features`.
            pre_logits: Return what the head sees, (B, C).
        """
        if self.global_pool == "token":
            x = x[:, (x.shape[1] - 1) // 2]
        elif self.global_pool == "avg":
            x = x.mean(1)
        x = F.dropout(x, self.drop_rate, self.training)
        if pre_logits or not isinstance(self.head, nn.Linear):
            return x
        return self.head(x.to(self.head.weight.dtype))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return what blocks put out, as timm's models do.

        Args:
            x: (B, channels, H, W).
            indices: Blocks; a number takes that many of the last, None all.
            return_prefix_tokens: Also give the class token of each, (B, 1, C).
            norm: Normalise each by norm_f.
            stop_early: Leave out the blocks after the last one asked for.
            output_fmt: "NCHW" is (B, C, rows, columns), "NLC" (B, M, C); both without the class token.
            intermediates_only: Leave out the final tokens.

        Returns:
            A list, or the normalised tokens (B, L, C) and a list.
        """
        if output_fmt not in ("NCHW", "NLC"):
            refuse("forward_intermediates", "output_fmt", "'NCHW' or 'NLC'", repr(output_fmt), "'NCHW' makes maps")
        taken, last = feature_take_indices(len(self.layers), indices)
        residual, grid = self.tokens(x)
        change, found = None, []
        for layer in range(last + 1 if stop_early else len(self.layers)):
            residual, change = self.run_block(layer, residual, change, grid)
            if layer in taken:
                kept = self.finished(residual, change) if norm else residual + change
                middle = (kept.shape[1] - 1) // 2
                patches = torch.cat([kept[:, :middle], kept[:, middle + 1 :]], 1)
                shaped = patches.mT.unflatten(2, grid).contiguous() if output_fmt == "NCHW" else patches
                found.append((shaped, kept[:, middle : middle + 1]) if return_prefix_tokens else shaped)
        return found if intermediates_only else (self.finished(residual, change), found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last one that is asked for, and norm and head if so; return the blocks."""
        taken, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm:
            self.norm_f = nn.Identity()
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
            global_pool: What it sees: "token", "avg", or "" for all tokens; None keeps what is.
        """
        if global_pool is not None:
            if global_pool not in ("token", "avg", ""):
                refuse("reset_classifier", "global_pool", "'token', 'avg' or ''", repr(global_pool), "Vim uses 'token'")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.config = with_classes(self.config, num_classes)
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
            self.head.to(self.cls_token.device)

    def set_input_size(self, img_size: int | tuple[int, int], patch_size: int | None = None) -> None:
        """Make the position embedding one for pictures of another size, given as side or (height, width).

        Raises:
            ValueError: Pictures smaller than a patch, or another patch size, which would need other weights.
        """
        if patch_size not in (None, self.config.patch):
            refuse("set_input_size", "patch_size", f"{self.config.patch}", patch_size, "the convolution has that size")
        size = (img_size, img_size) if isinstance(img_size, int) else (int(img_size[0]), int(img_size[1]))
        config = with_image(self.config, size)
        resized = resize_positions(self.pos_embed, self.config.grid, config.grid)
        self.pos_embed = nn.Parameter(resized.detach().clone())
        self.config = config

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass to save memory."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that must not decay: positions, class token, A, D, gates."""
        return undecayed(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how parameters fall into stem and blocks, for layer-wise rates."""
        stem = r"^cls_token|^pos_embed|^patch_embed"
        return {"stem": stem, "blocks": [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))]}


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample a position embedding whose class row is in the middle.

    Args:
        positions: (1, M + 1, C) for the grid `old`; the class row is M // 2.
        old: Rows and columns of patches it is made for.
        new: Those that are wanted.

    Returns:
        (1, M' + 1, C), the class row at M' // 2, unchanged.
    """
    if old == new:
        return positions
    middle = old[0] * old[1] // 2
    token = positions[:, middle : middle + 1]
    patches = torch.cat([positions[:, :middle], positions[:, middle + 1 :]], 1)
    patches = resample_abs_pos_embed(patches, list(new), list(old), num_prefix_tokens=0)
    middle = new[0] * new[1] // 2
    return torch.cat([patches[:, :middle], token, patches[:, middle:]], 1)
