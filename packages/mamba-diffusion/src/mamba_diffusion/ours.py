"""The network of `ours`: sensors and anchors along a Hilbert curve, latents, and queries decoded one by one.

Anchors are noisy queries that everything else sees; with at most `anchors` of them, and every query looking at the
latents and at a fixed number of neighbours, the cost grows linearly with the queries, which can be decoded in chunks.
B fields, Ni sensors, A anchors, Nq queries, K neighbours, C channels, d axes.
"""

from __future__ import annotations

from typing import cast

import torch
from ssm_kernels.nn import BidirectionalMamba, LayerNorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .condition import Condition
from .config import ModelConfig
from .curve import inverse, take
from .frontend import Attention, Fourier, time_features, time_mlp
from .kriging import offsets, pick

TIME_SCALE = 1000.0
GRID = 32.0  # offsets are measured in steps of such a grid
SOFT = 4.0  # features beyond this many units are compressed


class Modulated(nn.Module):
    """Norm, scale and shift by time, a sub-layer, and its gate by time: x + gate * layer(scale * norm(x) + shift).

    The projection of time is shared by all sub-layers of a network; each adds its own table to it.

    Source: Peebles and Xie 2023, arXiv:2212.09748 (AdaLN); Chen et al. 2024, arXiv:2310.00426 (one shared projection).
    """

    def __init__(self, width: int, layer: nn.Module) -> None:
        super().__init__()
        self.norm = LayerNorm(width, elementwise_affine=False)
        self.layer = layer
        self.table = nn.Parameter(torch.zeros(3, width))
        with torch.no_grad():
            self.table[2] = 1

    def forward(self, x: Tensor, time: Tensor, *more: Tensor) -> Tensor:
        """Map (B, N, width), with time (B, 3, width), to (B, N, width); `more` goes to the layer."""
        scale, shift, gate = (self.table + time)[:, :, None].unbind(1)
        return x + gate * self.layer(self.norm(x) * (1 + scale) + shift, *more)


def _mlp(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width), nn.Dropout(dropout)
    )


class NeighbourAttention(nn.Module):
    """Attention from every query to its own few neighbours, whose keys and values know how they lie to it."""

    def __init__(self, width: int, heads: int, features: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.content = nn.Linear(width, 2 * width)
        self.relation = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, content: Tensor, index: Tensor, relation: Tensor) -> Tensor:
        """Attend from (B, Nq, width) to rows `index` (B, Nq, K) of `self.content` of the context, (B, M, 2 width).

        relation is (B, Nq, K, f). Keys and values of the context are an argument so that chunks of queries share them.
        """
        k, v = (pick(content, index) + self.relation(relation)).chunk(2, -1)
        k, v = k.unflatten(-1, (self.heads, -1)), v.unflatten(-1, (self.heads, -1))
        q = self.query(x).unflatten(-1, (self.heads, -1))
        scores = (q[:, :, None] * k).sum(-1) * q.shape[-1] ** -0.5
        y = (scores.softmax(2)[..., None].to(v.dtype) * v).sum(2)
        return self.out(y.flatten(-2))


class SensorAttention(NeighbourAttention):
    """Attention from every sensor to the other sensors around it."""

    def forward(self, x: Tensor, index: Tensor, relation: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Attend from (B, Ni, width) to its own rows `index` (B, Ni, K); relation (B, Ni, K, f)."""
        return super().forward(x, self.content(x), index, relation)


class CurveScan(nn.Module):
    """Both scans over the tokens in the order of the curve."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mamba = BidirectionalMamba(config.width, d_state=config.d_state)

    def forward(self, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        """Map (B, M, width); `order` and `back` (B, M) lead to the curve and back."""
        return take(self.mamba(take(x, order)), back)


class ContextLayer(nn.Module):
    """Sensors look at the sensors around them, all tokens are scanned along the curve, then a feed-forward part."""

    def __init__(self, config: ModelConfig, features: int) -> None:
        super().__init__()
        width = config.width
        self.near = Modulated(width, SensorAttention(width, config.heads, features))
        self.scan = Modulated(width, CurveScan(config))
        self.mlp = Modulated(width, _mlp(width, config.dropout))

    def forward(self, x: Tensor, time: Tensor, order: Tensor, back: Tensor, index: Tensor, relation: Tensor) -> Tensor:
        """(B, Ni + A, width), sensors first, to the same."""
        sensors = index.shape[1]
        x = torch.cat([self.near(x[:, :sensors], time, index, relation), x[:, sensors:]], 1)
        return self.mlp(self.scan(x, time, order, back), time)


class Latents(nn.Module):
    """A fixed number of tokens that read the whole context."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.start = nn.Parameter(torch.randn(config.latents, width) * 0.5)
        self.read = Modulated(width, Attention(width, config.heads))
        self.mix_norm = LayerNorm(width)
        self.mix = Attention(width, config.heads)
        self.mlp = Modulated(width, _mlp(width, config.dropout))

    def forward(self, context: Tensor, time: Tensor) -> Tensor:
        """(B, M, width) to (B, latents, width)."""
        x = self.read(self.start.expand(context.shape[0], -1, -1), time, context)
        normed = self.mix_norm(x)
        return self.mlp(x + self.mix(normed, normed), time)


class DecoderLayer(nn.Module):
    """A query looks at its neighbours, at the latents, and thinks."""

    def __init__(self, config: ModelConfig, features: int) -> None:
        super().__init__()
        width = config.width
        self.near = Modulated(width, NeighbourAttention(width, config.heads, features))
        self.far = Modulated(width, Attention(width, config.heads))
        self.mlp = Modulated(width, _mlp(width, config.dropout))

    def content(self, context: Tensor) -> Tensor:
        """Return keys and values of the context (B, M, width) for `near`, (B, M, 2 width)."""
        return cast(NeighbourAttention, self.near.layer).content(context)

    def forward(
        self, x: Tensor, time: Tensor, content: Tensor, latents: Tensor, index: Tensor, relation: Tensor
    ) -> Tensor:
        """(B, Nq, width) to (B, Nq, width)."""
        x = self.near(x, time, content, index, relation)
        return self.mlp(self.far(x, time, latents), time)


class OursNetwork(nn.Module):
    """Velocity of the flow in units of kriging's standard deviation.

    Args:
        config: What it is made of.

    Attributes:
        checkpointing: Recompute every layer in the backward pass.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, channels, dims = config.width, config.channels, config.dims
        self.config, self.wraps = config, config.wraps
        self.checkpointing = False
        self.fourier = Fourier(config.fourier, dims, config.fourier_std, config.fourier_cap, config.wraps)
        self.input_proj = nn.Linear(2 * config.fourier + 2 * channels, width)
        self.query_proj = nn.Linear(2 * config.fourier + 4 * channels, width)
        self.time_mlp = time_mlp(width - width % 2)
        self.time_proj = nn.Linear(width - width % 2, 3 * width)
        among = dims + 1 + channels
        self.context_layers = nn.ModuleList(ContextLayer(config, among) for _ in range(config.layers))
        self.context_norm = LayerNorm(width)
        self.latents = Latents(config)
        features = dims + 2 + 2 * channels
        self.decoder_layers = nn.ModuleList(DecoderLayer(config, features) for _ in range(config.iterations))
        self.out_norm = LayerNorm(width)
        self.out = nn.Linear(width, channels)
        for module in (self.out, self.time_proj):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, noisy: Tensor, t: Tensor, given: Condition, chunk: int | None = None) -> Tensor:
        """Return the velocity.

        Args:
            noisy: (B, Nq, C), z at time t.
            t: (B,) in [0, 1].
            given: From `SparseField.prepare`.
            chunk: Queries decoded at once; None for all. The result does not depend on it.

        Returns:
            (B, Nq, C).
        """
        time = self.time_mlp(time_features(t, self.time_proj.in_features, TIME_SCALE))
        time = self.time_proj(torch.nn.functional.silu(time)).unflatten(-1, (3, -1))
        assert given.anchor is not None
        anchors = take(noisy, given.anchor)
        context = self._context(anchors, time, given)
        latents = self.latents(context, time)
        contents = [cast(DecoderLayer, layer).content(context) for layer in self.decoder_layers]
        total = noisy.shape[1]
        parts = []
        for start in range(0, total, chunk or total):
            stop = min(total, start + (chunk or total))
            parts.append(
                self._decode(noisy[:, start:stop], anchors, contents, latents, time, given.queries(start, stop), given)
            )
        residual = torch.cat(parts, 1).to(noisy.dtype)
        return skip(t)[:, None, None] * noisy + gain(t)[:, None, None] * residual

    def _context(self, anchors: Tensor, time: Tensor, given: Condition) -> Tensor:
        """Mix the tokens of sensors and anchors along the curve; return them sensors first, (B, Ni + A, width)."""
        assert given.anchor is not None and given.context_order is not None and given.near_input is not None
        features = torch.cat([self._relative(given.input_values, given), _surprise(given)], -1)
        sensors = self.input_proj(torch.cat([self.fourier(given.input_coords), squash(features)], -1))
        context = torch.cat([sensors, self._query_tokens(anchors, given, given.anchor)], 1)
        order, index, relation = given.context_order, given.near_input, self._among_sensors(given)
        back = inverse(order)
        for layer in self.context_layers:
            context = self._run(layer, context, time, order, back, index, relation)
        return self.context_norm(context)

    def _among_sensors(self, given: Condition) -> Tensor:
        """Return how the neighbours of every sensor lie and differ, (B, Ni, K, d + 1 + C)."""
        assert given.near_input is not None and given.scale is not None
        offset = self._offset(given.input_coords, given.near_input, given.input_coords)
        differ = pick(given.input_values, given.near_input) - given.input_values[:, :, None]
        return squash(torch.cat([offset, differ / given.scale[:, :, None]], -1))

    def _offset(self, places: Tensor, index: Tensor, centres: Tensor) -> Tensor:
        """Return offsets and distances of places[index] from the centres (B, N, d), in grid steps: (B, N, K, d + 1)."""
        offset = GRID * offsets(pick(places, index), centres[:, :, None], self.wraps)
        return torch.cat([offset, offset.norm(dim=-1, keepdim=True)], -1)

    def _query_tokens(self, noisy: Tensor, given: Condition, index: Tensor | None = None) -> Tensor:
        assert given.scale is not None and given.doubt is not None
        parts = (given.query_coords, given.base, given.spread, given.doubt)
        coords, base, spread, doubt = parts if index is None else (take(x, index) for x in parts)
        features = torch.cat([noisy, self._relative(base, given), (spread / given.scale).log(), doubt], -1)
        return self.query_proj(torch.cat([self.fourier(coords), squash(features)], -1))

    def _relative(self, values: Tensor, given: Condition) -> Tensor:
        assert given.centre is not None and given.scale is not None
        return (values - given.centre) / given.scale

    def _decode(
        self,
        noisy: Tensor,
        anchors: Tensor,
        contents: list[Tensor],
        latents: Tensor,
        time: Tensor,
        part: Condition,
        given: Condition,
    ) -> Tensor:
        assert given.anchor is not None and part.near is not None and part.near_anchor is not None
        sensors = given.input_coords.shape[1]
        index = torch.cat([part.near, part.near_anchor + sensors], 2)
        seen = pick(given.input_values, part.near) - part.base[:, :, None]
        values = torch.cat([seen / part.spread[:, :, None], pick(anchors, part.near_anchor)], 2)
        is_anchor = torch.zeros_like(values[..., :1])
        is_anchor[:, :, part.near.shape[2] :] = 1
        places = torch.cat([given.input_coords, take(given.query_coords, given.anchor)], 1)
        offset = self._offset(places, index, part.query_coords)
        own = noisy[:, :, None].expand_as(values)
        relation = squash(torch.cat([offset, is_anchor, values, own], -1))
        x = self._query_tokens(noisy, part)
        for layer, content in zip(self.decoder_layers, contents, strict=True):
            x = self._run(layer, x, time, content, latents, index, relation)
        return self.out(self.out_norm(x))

    def _run(self, layer: nn.Module, *inputs: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(layer, *inputs, use_reentrant=False))
        return layer(*inputs)


def squash(x: Tensor) -> Tensor:
    """Keep moderate features as they are and large ones from growing: SOFT * asinh(x / SOFT)."""
    return SOFT * torch.asinh(x / SOFT)


def skip(t: Tensor) -> Tensor:
    """Return the share of z that is velocity if z at t = 1 were a unit Gaussian without any structure."""
    return (2 * t - 1) / (t * t + (1 - t) * (1 - t))


def gain(t: Tensor) -> Tensor:
    """Return the standard deviation of what is left of the velocity then."""
    return (t * t + (1 - t) * (1 - t)).rsqrt()


def _surprise(given: Condition) -> Tensor:
    assert given.surprise is not None
    return given.surprise
