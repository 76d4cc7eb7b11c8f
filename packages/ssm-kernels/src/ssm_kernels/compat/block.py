"""mamba-ssm's `Block` (norm, mixer, residual) in the forms of its versions 1 and 2, and its gated MLP.

Letters: B batch, L length, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import InferenceParams, State
from .norms import RMSNorm, layer_norm_fn

Norm = nn.LayerNorm | RMSNorm
Maker = Callable[[int], Any]


class Block(nn.Module):
    """Add the residual, normalise, mix; then the same with an MLP if there is one. As `modules.block.Block`.

    The block takes and returns the branch and the residual apart: the sum is made at the next norm.

    Args:
        dim: Channels C.
        mixer_cls: Makes the mixer from C.
        mlp_cls: Makes the MLP from C; nn.Identity is none.
        norm_cls: Makes a norm from C: nn.LayerNorm or this package's RMSNorm.
        fused_add_norm: Sum and norm in one call, which keeps the sum in float32 inside.
        residual_in_fp32: Keep the residual in float32.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Maker,
        mlp_cls: Maker,
        norm_cls: Maker = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ):
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.layer_idx: int | None = None
        self.norm: Norm = norm_cls(dim)
        self.mixer = mixer_cls(dim)
        self.mlp = None
        if mlp_cls is not nn.Identity:
            self.norm2: Norm = norm_cls(dim)
            self.mlp = mlp_cls(dim)

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: InferenceParams | None = None,
        **mixer_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Give the branch and the residual, (B, L, C) each, from those of the block before (no residual at first)."""
        x, residual = self._normed(self.norm, hidden_states, residual)
        x = self.mixer(x, inference_params=inference_params, **mixer_kwargs)
        if self.mlp is not None:
            x, residual = self._normed(self.norm2, x, residual)
            x = self.mlp(x)
        return x, residual

    def _normed(self, norm: Norm, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.fused_add_norm:
            done = add_and_norm(norm, x, residual, prenorm=True, residual_in_fp32=self.residual_in_fp32)
            assert not isinstance(done, Tensor)
            y, total = done
            assert y is not None
            assert total is not None
            return y, total
        total = x if residual is None else x + residual
        y = norm(total.to(norm.weight.dtype))
        return y, total.float() if self.residual_in_fp32 else total

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> State:
        """Give the zero states of the mixer."""
        return self.mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)


class BlockWithoutMLP(Block):
    """`Block` with the constructor of mamba-ssm 1.x, where `modules.mamba_simple` has it.

    Args:
        dim: Channels C.
        mixer_cls: Makes the mixer from C.
        norm_cls: Makes the norm from C.
        fused_add_norm: Sum and norm in one call.
        residual_in_fp32: Keep the residual in float32.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Maker,
        norm_cls: Maker = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ):
        super().__init__(dim, mixer_cls, nn.Identity, norm_cls, fused_add_norm, residual_in_fp32)


class GatedMLP(nn.Module):
    """fc2(a * activation(g)) with a, g = fc1(x), as `modules.mlp.GatedMLP`.

    Args:
        in_features: Channels of the input.
        hidden_features: Channels of a, rounded up; None is 8 / 3 of the input's.
        out_features: Channels of the output; None is those of the input.
        activation: Of the gate.
        bias: Give both projections a bias.
        multiple_of: hidden_features is rounded up to a multiple of it.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Callable[[Tensor], Tensor] = F.silu,
        bias: bool = False,
        multiple_of: int = 128,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        hidden = int(8 * in_features / 3) if hidden_features is None else hidden_features
        hidden = -(-hidden // multiple_of) * multiple_of
        self.fc1 = nn.Linear(in_features, 2 * hidden, bias=bias, device=device, dtype=dtype)
        self.activation = activation
        out = in_features if out_features is None else out_features
        self.fc2 = nn.Linear(hidden, out, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        value, gate = self.fc1(x).chunk(2, -1)
        return self.fc2(value * self.activation(gate))


def add_and_norm(
    norm: Norm, x: Tensor, residual: Tensor | None, *, prenorm: bool, residual_in_fp32: bool
) -> Tensor | tuple[Tensor | None, ...]:
    """Call `layer_norm_fn` with the parameters of a norm."""
    return layer_norm_fn(
        x,
        norm.weight,
        norm.bias,
        residual=residual,
        eps=norm.eps,
        prenorm=prenorm,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=isinstance(norm, RMSNorm),
    )
