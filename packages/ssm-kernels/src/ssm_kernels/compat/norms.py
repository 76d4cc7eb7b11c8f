"""mamba-ssm's norms fused with dropout and residual sum, as in `mamba_ssm.ops.triton.layer_norm`.

The plain call of a block, sum and norm, is one operator of this package; what has more parts is PyTorch.

The sum is h = dropout(x * rowscale) + dropout(x1) + residual, y = norm(h) * weight + bias, y1 = norm(h) * weight1 +
bias1. Letters: D channels, M rows, all axes before D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import check_shape, refuse
from ..ops.layer_norm import layer_norm, rms_norm
from .gated_norms import wide

Results = Tensor | tuple[Tensor | None, ...]


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Results:
    """Add up, keep the sum, normalise.

    Args:
        x: (..., D), any floating dtype; computed in float32 (float64 for that).
        weight: (D,).
        bias: (D,) or None.
        residual: Added, of the shape of x; None leaves it out.
        x1: A second branch of the shape of x; None leaves it out.
        weight1: A second norm's weight, (D,); it gives a second result.
        bias1: Its bias.
        eps: Added to the variance.
        dropout_p: Probability of dropping an element of x and of x1.
        rowscale: Factor of every row of x, (...,). Not together with x1.
        prenorm: Also return the sum, in the dtype of `residual`; without one in float32 if `residual_in_fp32`.
        residual_in_fp32: See `prenorm`.
        is_rms_norm: Leave the mean where it is.
        return_dropout_mask: Also return which elements of x and of x1 were kept, None without dropout.

    Returns:
        y in x.dtype, y1 with `weight1`, the sum with `prenorm`, two masks with `return_dropout_mask`, in that order; a
        single one alone, several in a tuple.

    Raises:
        ValueError: A shape is wrong, or x1 and rowscale come together.
    """
    _check(x, residual, x1, rowscale)
    plain = x1 is None and weight1 is None and rowscale is None and dropout_p <= 0.0 and not return_dropout_mask
    if plain and (residual is None or torch.promote_types(x.dtype, residual.dtype) == residual.dtype):
        return _fused(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm)
    with torch.autocast(x.device.type, enabled=False):
        total, masks = _total(x, residual, x1, dropout_p, rowscale)
        normal = _normal(total, eps, is_rms_norm)
        results: list[Tensor | None] = [_affine(normal, weight, bias, x.dtype)]
        if weight1 is not None:
            results.append(_affine(normal, weight1, bias1, x.dtype))
        if prenorm:
            kept = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype
            results.append(total.to(kept))
    if return_dropout_mask:
        results += masks
    only = results[0]
    return only if len(results) == 1 and only is not None else tuple(results)


def _fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    prenorm: bool,
    residual_in_fp32: bool,
    is_rms_norm: bool,
) -> Results:
    """Call the operator: the sum has the dtype of `residual`, as it is asked for."""
    norm = rms_norm if is_rms_norm else layer_norm
    if residual is None:
        y = norm(x, weight, bias, eps=eps)
        return (y, x.to(torch.float32 if residual_in_fp32 else x.dtype)) if prenorm else y
    y, total = norm(x, weight, bias, residual=residual, eps=eps)
    return (y, total) if prenorm else y


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Results:
    """Give `layer_norm_fn` with `is_rms_norm`."""
    return layer_norm_fn(
        x,
        weight,
        bias,
        residual,
        x1,
        weight1,
        bias1,
        eps,
        dropout_p,
        rowscale,
        prenorm,
        residual_in_fp32,
        True,
        return_dropout_mask,
    )


def layer_norm_linear_fn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Results:
    """Project what `layer_norm_fn` returns; with `prenorm` the sum comes second."""
    done = layer_norm_fn(
        x,
        norm_weight,
        norm_bias,
        residual,
        eps=eps,
        prenorm=prenorm,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )
    if isinstance(done, Tensor):
        return F.linear(done.to(linear_weight.dtype), linear_weight, linear_bias)
    y, total = done
    assert y is not None
    return F.linear(y.to(linear_weight.dtype), linear_weight, linear_bias), total


class RMSNorm(nn.Module):
    """`rms_norm_fn` with its weight, and the constructor of mamba-ssm's RMSNorm.

    Args:
        hidden_size: Channels D.
        eps: Added to the mean square.
        dropout_p: Probability of dropping an element of x in training.
        device: Of the weight.
        dtype: Of the weight.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p > 0.0 else None
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.bias: None
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to one."""
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Results:
        """Normalise x + residual, (..., D); with `prenorm` return the sum as well."""
        return rms_norm_fn(
            x,
            self.weight,
            None,
            residual=residual,
            eps=self.eps,
            dropout_p=self.drop.p if self.drop is not None and self.training else 0.0,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )


def _check(x: Tensor, residual: Tensor | None, x1: Tensor | None, rowscale: Tensor | None) -> None:
    op = "layer_norm_fn"
    for name, tensor in {"residual": residual, "x1": x1}.items():
        if tensor is not None:
            check_shape(op, name, tensor, [x.shape], "the shape of x", "both are added")
    if rowscale is not None:
        check_shape(op, "rowscale", rowscale, [x.shape[:-1]], "the shape of x without channels", "one factor per row")
        if x1 is not None:
            refuse(op, "rowscale", "None with x1", "a tensor", "multiply x before")


def _total(
    x: Tensor, residual: Tensor | None, x1: Tensor | None, dropout_p: float, rowscale: Tensor | None
) -> tuple[Tensor, list[Tensor | None]]:
    """Sum up in float32; also give what dropout kept of x and of x1."""
    total = wide(x)
    if rowscale is not None:
        total = total * rowscale.unsqueeze(-1)
    total, mask = _dropped(total, dropout_p)
    mask1 = None
    if x1 is not None:
        second, mask1 = _dropped(wide(x1), dropout_p)
        total = total + second
    if residual is not None:
        total = total + residual
    return total, [mask, mask1]


def _dropped(x: Tensor, dropout_p: float) -> tuple[Tensor, Tensor | None]:
    if dropout_p <= 0.0:
        return x, None
    mask = torch.rand_like(x) > dropout_p
    return x * mask / (1.0 - dropout_p), mask


def _normal(x: Tensor, eps: float, is_rms_norm: bool) -> Tensor:
    if not is_rms_norm:
        return F.layer_norm(x, x.shape[-1:], eps=eps)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    y = x * weight
    return (y if bias is None else y + bias).to(dtype)
