"""The parts a network is composed of. B batch, H height, W width, C channels; tokens are (B, H, W, C) everywhere.

Convolutions see the same memory as a channels-last image, so nothing is transposed between a scan and a convolution. A
block hands its last sum on unadded, as (stream, branch): the next norm adds them while it reads them.
"""

from collections import OrderedDict

import torch
from ssm_kernels.nn.layer_norm import LayerNorm
from ssm_kernels.nn.ss2d import SS2D
from ssm_kernels.nn.window import OverlappingWindowAttention, WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import VariedOverlapAttention
from .config import ModelConfig
from .mixers import SSD2D, Windowed
from .recompute import gelu_linear

COORDINATE_RANGE = 8.0  # of the generated position bias, before the logarithm


class Conv(nn.Conv2d):
    """3 x 3 convolution with bias and zero padding on tokens: (B, H, W, in) -> (B, H, W, out)."""

    def __init__(self, inputs: int, outputs: int, *, depthwise: bool = False) -> None:
        super().__init__(inputs, outputs, 3, padding=1, groups=inputs if depthwise else 1)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve; the permutations only relabel axes."""
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ExactConv(Conv):
    """`Conv` in the precision of its weights, also under autocast: a step of bfloat16 can be a grey level."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, H, W, in) -> (B, H, W, out), in the dtype of the weights under autocast."""
        if input.is_meta or not torch.is_autocast_enabled(input.device.type):  # autocast knows no meta device
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.reduce = nn.Linear(hidden, dim)
        init_linear(self.expand, self.reduce)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return gelu_linear(self.expand(x), self.reduce)


class DepthwiseMlp(nn.Module):
    """`Mlp` whose hidden layer looks at its neighbours through a residual depthwise convolution."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.depthwise = Conv(hidden, hidden, depthwise=True)
        self.reduce = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.expand(x)
        return gelu_linear(x + self.depthwise(x), self.reduce)


class GatedConvMlp(nn.Module):
    """GCFFN: one half of the hidden layer, convolved and activated, gates the other half."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, 2 * hidden)
        self.depthwise = Conv(hidden, hidden, depthwise=True)
        self.reduce = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        value, gate = self.expand(x).chunk(2, -1)
        return self.reduce(F.gelu(self.depthwise(gate)) * value)


class GatedMlp(nn.Module):
    """GEGLU: one half of the hidden layer, activated, gates the other half; no convolution."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, 2 * hidden)
        self.reduce = nn.Linear(hidden, dim)
        init_linear(self.expand, self.reduce)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        value, gate = self.expand(x).chunk(2, -1)
        return self.reduce(F.gelu(gate) * value)


class SpatialGateMlp(nn.Module):
    """After the activation, one half of the hidden layer is normalised, convolved and multiplied onto the other."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.norm = LayerNorm(hidden // 2)
        self.depthwise = Conv(hidden // 2, hidden // 2, depthwise=True)
        self.reduce = nn.Linear(hidden // 2, dim)
        init_linear(self.expand, self.reduce)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        value, gate = F.gelu(self.expand(x)).chunk(2, -1)
        return self.reduce(value * self.depthwise(self.norm(gate)))


FEED_FORWARD = {
    "mlp": Mlp,
    "dwconv": DepthwiseMlp,
    "geglu": GatedMlp,
    "gated-conv": GatedConvMlp,
    "spatial-gate": SpatialGateMlp,
}


class ChannelAttention(nn.Module):
    """CAB of HAT: two convolutions, then every channel weighted by what the image's channel means say."""

    def __init__(self, dim: int, compressed: int, squeezed: int) -> None:
        super().__init__()
        self.compress = Conv(dim, compressed)
        self.restore = Conv(compressed, dim)
        self.squeeze = nn.Linear(dim, squeezed)
        self.excite = nn.Linear(squeezed, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.restore(F.gelu(self.compress(x)))
        weight = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((1, 2), keepdim=True)))))
        return x * weight


class DynamicPositionBias(nn.Module):
    """A small network that maps the offset of a key from a query to one bias per head.

    Args:
        dim: C; the hidden width is C // 4.
        heads: Attention heads.
        window: Side M of the query window.
        key_window: Side of the key window.
        rotated: Use the offsets that the published code feeds: rotated by (key_window - 2) * (M + key_window).
    """

    coordinates: Tensor

    def __init__(self, dim: int, heads: int, window: int, key_window: int, rotated: bool) -> None:
        super().__init__()
        hidden = max(1, dim // 4)
        self.embed = nn.Linear(2, hidden)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, width))
            for width in (hidden, hidden, heads)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module)
        coordinates = offset_coordinates(window, key_window).flatten(0, 1)
        if rotated:
            coordinates = coordinates.roll(overlap_index_rotation(window, key_window), 0)
        self.register_buffer("coordinates", coordinates, persistent=False)

    def forward(self) -> Tensor:
        """Return the table, ((M + key_window - 1)^2, heads), rows by true offset."""
        bias = self.embed(self.coordinates)
        for layer in self.layers:
            bias = layer(bias)
        return bias


class Block(nn.Module):
    """x + mixer(n) [+ 0.01 * CAB(n)] with n = norm(x), then x + feed-forward(norm(x)).

    Args:
        config: Of the network.
        index: Position in the group; odd blocks of window attention are shifted by half a window.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = LayerNorm(dim)
        self.mixer = make_mixer(config, index)
        self.channel_attention = None
        if config.channel_attention:
            self.channel_attention = ChannelAttention(dim, dim // config.compress_ratio, dim // config.squeeze_factor)
        self.channel_attention_scale = config.channel_attention_scale
        self.norm2 = LayerNorm(dim)
        self.ffn = FEED_FORWARD[config.ffn](dim, config.hidden)

    def forward(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x + branch, (B, H, W, C) both, to the two summands of the result."""
        n, x = normed_sum(self.norm1, x, branch)
        mixed = self.mixer(n)
        if self.channel_attention is not None:
            x = torch.add(x, self.channel_attention(n), alpha=self.channel_attention_scale)
        n, x = normed_sum(self.norm2, x, mixed)
        return x, self.ffn(n)


def normed_sum(norm: nn.LayerNorm, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the norm of x + branch, in autocast's dtype, and that sum; a missing branch is zero."""
    return (norm(x), x) if branch is None else norm(branch, x)


def make_mixer(config: ModelConfig, index: int) -> nn.Module:
    """Build the mixer of a group's block number `index`."""
    if config.mixer == "attention":
        shift = config.window // 2 if index % 2 else 0
        bias = config.position == "table"
        return WindowAttention(config.dim, config.heads, config.window, shift=shift, position_bias=bias)
    if config.mixer == "ssd":
        mixer = SSD2D(config.dim, config.d_state, config.ssm_ratio, config.heads)
    else:
        mixer = SS2D(config.dim, config.d_state, config.ssm_ratio)
    init_linear(mixer.in_proj, mixer.out_proj)
    return Windowed(mixer, config.scan_window) if config.scan_window else mixer


def make_overlap_attention(config: ModelConfig) -> OverlappingWindowAttention:
    """Build the overlapping attention; the variants have a class of their own."""
    table = config.position == "table"
    if not (config.registers or config.softmax_clip or config.multi_query):
        return OverlappingWindowAttention(
            config.dim, config.heads, config.window, overlap_ratio=config.overlap_ratio, position_bias=table
        )
    return VariedOverlapAttention(
        config.dim,
        config.heads,
        config.window,
        overlap_ratio=config.overlap_ratio,
        position_bias=table,
        registers=config.registers,
        clip=config.softmax_clip,
        multi_query=config.multi_query,
    )


class OverlapBlock(nn.Module):
    """OCAB: queries of a window attend to a larger window around it; then the feed-forward part."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.dim)
        self.attention = make_overlap_attention(config)
        self.position = None
        if config.position == "dynamic":
            self.position = DynamicPositionBias(
                config.dim, config.heads, config.window, config.key_window, config.rotated_overlap_index
            )
        self.norm2 = LayerNorm(config.dim)
        self.ffn = FEED_FORWARD[config.ffn](config.dim, config.hidden)

    def forward(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x + branch, (B, H, W, C) with H and W multiples of the window, to the two summands of the result."""
        table = None if self.position is None else self.position()
        n, x = normed_sum(self.norm1, x, branch)
        n, x = normed_sum(self.norm2, x, self.attention(n, table))
        return x, self.ffn(n)


class Group(nn.Module):
    """Blocks, the overlapping attention, a convolution, and a skip around all of it (times `residual_scale`)."""

    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, i) for i in range(depth))
        self.overlap = OverlapBlock(config) if config.overlap_attention else None
        self.conv = Conv(config.dim, config.dim)
        self.residual_scale = config.residual_scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        inner, branch = x, None
        for block in self.blocks:
            inner, branch = block(inner, branch)
        if self.overlap is not None:
            inner, branch = self.overlap(inner, branch)
        inner = self.conv(inner if branch is None else inner + branch)
        return inner + x if self.residual_scale == 1 else self.residual_scale * inner + x


class PixelShuffle(nn.Module):
    """Move blocks of s * s channels into space: (B, H, W, C * s * s) -> (B, s * H, s * W, C)."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Channel order as `torch.nn.PixelShuffle`: colour, then row, then column."""
        return F.pixel_shuffle(x.permute(0, 3, 1, 2), self.scale).permute(0, 2, 3, 1)


def make_upsampler(config: ModelConfig) -> nn.Sequential:
    """Build what turns (B, H, W, C) into (B, s * H, s * W, 3)."""
    scale, width = config.scale, config.upsampler_dim
    if config.upsampler == "direct":
        parts = [("conv", ExactConv(config.dim, 3 * scale * scale)), ("shuffle", PixelShuffle(scale))]
        return nn.Sequential(OrderedDict[str, nn.Module](parts))
    parts: list[tuple[str, nn.Module]] = [("conv", Conv(config.dim, width)), ("activation", nn.LeakyReLU(0.01))]
    for i, step in enumerate([3] if scale == 3 else [2] * (scale.bit_length() - 1)):
        parts += [(f"conv{i}", Conv(width, width * step * step)), (f"shuffle{i}", PixelShuffle(step))]
    parts.append(("to_rgb", ExactConv(width, 3)))
    return nn.Sequential(OrderedDict(parts))


def init_linear(*layers: nn.Linear) -> None:
    """Fill weights with normal numbers of deviation 0.02 cut at +-2, and biases with zero."""
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def offset_coordinates(window: int, key_window: int) -> Tensor:
    """Return the (row, column) offset of every key from every query on a signed log scale.

    Returns:
        (M + key_window - 1, M + key_window - 1, 2) float32: offset / largest offset * 8, then sign * log2(|v| + 1) / 3.
    """
    reach = (window + key_window - 2) // 2
    axis = torch.arange(-reach, window + key_window - 1 - reach, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    grid = grid / max(reach, 1) * COORDINATE_RANGE
    return grid.sign() * torch.log2(grid.abs() + 1.0) / torch.log2(torch.tensor(COORDINATE_RANGE))


def overlap_index_rotation(window: int, key_window: int) -> int:
    """Return by how many rows the published code's index of the bias table is behind the true one (880 for 16, 24).

    It adds M - key_window + 1 to row and column offsets where M - 1 would start at zero, and lets negative indices
    wrap around: published index = (true index - rotation) mod table size.
    """
    return (key_window - 2) * (window + key_window)
