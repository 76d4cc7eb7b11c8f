"""mamba-ssm's norms with a gate, as in `mamba_ssm.ops.triton.layernorm_gated`. D is the number of channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_shape, refuse


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """Divide by the root mean square of each group of channels, with a gate before or after.

    Args:
        x: (..., D), any floating dtype; computed in float32 (float64 for that).
        weight: Multiplies the result, (D,).
        bias: Added to it, (D,) or None.
        z: Gate of the shape of x, or None.
        eps: Added to the mean square.
        group_size: Channels that share one mean square, a divisor of D; None is D.
        norm_before_gate: norm(x) * silu(z); else norm(x * silu(z)).

    Returns:
        The shape and dtype of x.

    Raises:
        ValueError: z is not of the shape of x, or group_size does not divide D.
    """
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm=True)


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Do the same after taking the mean of each group away; with `is_rms_norm` it is `rmsnorm_fn`."""
    if z is not None:
        check_shape("layernorm_fn", "z", z, [x.shape], "the shape of x", "one gate per element")
    with torch.autocast(x.device.type, enabled=False):
        value, gate = wide(x), None if z is None else F.silu(wide(z))
        if gate is not None and not norm_before_gate:
            value = value * gate
        y = _grouped(value, eps, group_size, is_rms_norm) * weight
        if bias is not None:
            y = y + bias
        if gate is not None and norm_before_gate:
            y = y * gate
        return y.to(x.dtype)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """Give `rmsnorm_fn`, which is PyTorch here; `upcast` is on in any case."""
    return rmsnorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate)


def rms_normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide the last axis by its root mean square and multiply by the weight, in float32 at least."""
    return rmsnorm_fn(x, weight, None, eps=eps)


def wide(x: Tensor) -> Tensor:
    """Give x in float32, or float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _grouped(x: Tensor, eps: float, group_size: int | None, is_rms_norm: bool) -> Tensor:
    size = x.shape[-1] if group_size is None else group_size
    if size < 1 or x.shape[-1] % size:
        refuse("rmsnorm_fn", "group_size", f"a divisor of D={x.shape[-1]}", group_size, "groups are equally large")
    groups = x.unflatten(-1, (-1, size))
    if not is_rms_norm:
        groups = groups - groups.mean(-1, keepdim=True)
    return (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)).flatten(-2)


class LayerNorm(nn.Module):
    """`layernorm_fn` with its weight and bias, and the constructor of mamba-ssm's gated LayerNorm.

    Args:
        hidden_size: Channels D.
        eps: Added to the variance.
        group_size: Channels that are normalised together; None is all.
        norm_before_gate: Gate the result, not the input.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to one and the bias to zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Normalise (..., D), with the gate z of the same shape if there is one."""
        return layernorm_fn(x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate)


class RMSNorm(nn.Module):
    """`rmsnorm_fn` with its weight, and the constructor of mamba-ssm's gated RMSNorm.

    Args:
        hidden_size: Channels D.
        eps: Added to the mean square.
        group_size: Channels that are normalised together; None is all.
        norm_before_gate: Gate the result, not the input.
        device: Of the weight.
        dtype: Of the weight.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Normalise (..., D), with the gate z of the same shape if there is one."""
        return rmsnorm_fn(x, self.weight, None, z, self.eps, self.group_size, self.norm_before_gate)
