"""The seed's networks: V1 and V2, with the origin's block or with real Mamba layers, and the transformer V4.

All take noisy queries and sensors as one sequence, sensors first. Parameter names are the origin's. B batch,
Ni sensors, Nq queries, C channels, d axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from ssm_kernels.nn import LayerNorm, Mamba
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .condition import Condition
from .config import ModelConfig
from .curve import inverse, take
from .frontend import Attention, Fourier, RMSNorm, decoder, feed_forward, time_features, time_mlp
from .legacy import LegacyBlock
from .mamba2 import Mamba2


class MambaBlock(nn.Module):
    """x + mixer(norm(x)), and nothing else, as in the Mamba papers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.width, eps=1e-5)
        two = config.mixer == "mamba2"
        self.mixer = (Mamba2 if two else Mamba)(config.width, d_state=config.d_state)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to (B, N, width)."""
        return x + self.mixer(self.norm(x))


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward part (ratio 4, one hidden GELU) of V4."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads, config.dropout)
        self.mlp = feed_forward(config.width, 4, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to (B, N, width)."""
        normed = self.norm(x)
        x = x + self.dropout(self.attention(normed, normed))
        return x + self.mlp(x)


def _block(config: ModelConfig) -> nn.Module:
    if config.mixer == "legacy":
        return LegacyBlock(config.width, config.d_state, config.dropout)
    return MambaBlock(config)


def _through(blocks: Sequence[nn.Module] | nn.ModuleList, x: Tensor, *, recompute: bool) -> Tensor:
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)  # pyright: ignore[reportAssignmentType]
    return x


class BidirectionalStack(nn.Module):
    """Half of the blocks along the sequence, the other half against it, both from the same input; then combined."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        half, width = config.layers // 2, config.width
        self.forward_blocks = nn.ModuleList(_block(config) for _ in range(half))
        self.backward_blocks = nn.ModuleList(_block(config) for _ in range(half))
        self.combine = nn.Sequential(
            LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Dropout(config.dropout)
        )

    def forward(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        """(B, N, width) to (B, N, width)."""
        ahead = _through(self.forward_blocks, x, recompute=recompute)
        back = _through(self.backward_blocks, x.flip(1), recompute=recompute).flip(1)
        return self.combine(torch.cat([ahead, back], -1))


class PerceiverIteration(nn.Module):
    """Queries look at the sensors, then at each other (both with a norm after the residual), then a feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.cross_attn = Attention(width, config.heads, config.dropout)
        self.cross_norm = nn.LayerNorm(width)  # PyTorch's: under autocast the residual stream stays float32
        self.self_attn = Attention(width, config.heads, config.dropout)
        self.self_norm = nn.LayerNorm(width)
        self.mlp = feed_forward(width, 2, config.dropout)

    def forward(self, queries: Tensor, inputs: Tensor) -> Tensor:
        """(B, Nq, width) and (B, Ni, width) to (B, Nq, width)."""
        queries = self.cross_norm(queries + self.cross_attn(queries, inputs))
        queries = self.self_norm(queries + self.self_attn(queries, queries))
        return queries + self.mlp(queries)


class Perceiver(nn.Module):
    """Iterations with their own weights; the sensors' tokens stay as they are."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.iterations = nn.ModuleList(PerceiverIteration(config) for _ in range(config.iterations))

    def forward(self, queries: Tensor, inputs: Tensor, *, recompute: bool = False) -> Tensor:
        """(B, Nq, width) and (B, Ni, width) to (B, Nq, width)."""
        for iteration in self.iterations:
            if recompute:
                queries = checkpoint(iteration, queries, inputs, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
            else:
                queries = iteration(queries, inputs)
        return queries


class SeedNetwork(nn.Module):
    """Front end, stack, attention from queries to sensors, decoder: `kind` decides stack and attention.

    v1 and v4 have a single cross-attention without a residual: what the network knows of the noisy value reaches the
    output only through attention weights. That is how the origin is, and why it is here as a baseline.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, channels = config.width, config.channels
        self.config = config
        self.checkpointing = False
        self.fourier = Fourier(config.fourier, config.dims, config.fourier_std, config.fourier_cap, config.wraps)
        self.input_proj = nn.Linear(2 * config.fourier + channels, width)
        self.query_proj = nn.Linear(2 * config.fourier + channels, width)
        self.time_mlp = time_mlp(width)
        if config.kind == "v2":
            self.bidirectional_mamba = BidirectionalStack(config)
            self.perceiver = Perceiver(config)
        else:
            if config.kind == "v4":
                self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))
                self.norm = LayerNorm(width)
            else:
                self.mamba_blocks = nn.ModuleList(_block(config) for _ in range(config.layers))
            self.query_cross_attn = Attention(width, config.heads, config.dropout)
        self.decoder = decoder(width, channels, config.dropout)

    def forward(self, noisy: Tensor, t: Tensor, given: Condition) -> Tensor:
        """Return the velocity (B, Nq, C) at noisy values (B, Nq, C) and times t (B,) in [0, 1]."""
        inputs = torch.cat([self.fourier(given.input_coords), given.input_values], -1)
        queries = torch.cat([self.fourier(given.query_coords), noisy], -1)
        if given.input_order is not None and given.query_order is not None:
            inputs, queries = take(inputs, given.input_order), take(queries, given.query_order)
        sequence = torch.cat([self.input_proj(inputs), self.query_proj(queries)], 1)
        sequence = sequence + self.time_mlp(time_features(t, self.config.width))[:, None]
        velocity = self.decoder(self._mix(sequence, inputs.shape[1]))
        return velocity if given.query_order is None else take(velocity, inverse(given.query_order))

    def _mix(self, sequence: Tensor, sensors: int) -> Tensor:
        recompute = self.checkpointing and torch.is_grad_enabled()
        if self.config.kind == "v2":
            sequence = self.bidirectional_mamba(sequence, recompute=recompute)
            return self.perceiver(sequence[:, sensors:], sequence[:, :sensors], recompute=recompute)
        if self.config.kind == "v4":
            sequence = sequence + position_code(sequence)
            sequence = self.norm(_through(self.layers, sequence, recompute=recompute))
        else:
            sequence = _through(self.mamba_blocks, sequence, recompute=recompute)
        return self.query_cross_attn(sequence[:, sensors:], sequence[:, :sensors])


def position_code(x: Tensor) -> Tensor:
    """Sinusoids of the place in the sequence, (N, width), for x (B, N, width)."""
    place = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, x.shape[2], 2, device=x.device) * (-math.log(1e4) / x.shape[2]))
    code = torch.stack([(place * rate).sin(), (place * rate).cos()], -1).flatten(1)
    return code.to(x.dtype)
