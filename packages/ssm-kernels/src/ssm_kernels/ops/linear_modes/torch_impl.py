"""Discretisation of modes, and its gradient in closed form; all elementwise, in double precision where there is one.

The powers of a along a row multiply its rounding by their number, so a is rounded once, from float64; there are few
numbers here.

With z = step * Lambda. "zoh": a = exp(z), f = step phi(z), phi(z) = (exp(z) - 1) / z. "bilinear": v = 1 / (1 - z/2),
a = 1 + z v, f = step v. Gradients are PyTorch's: conjugate to derivatives by the number.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEAR = 1e-3  # |z| below which a series of four terms is exact to 1e-14


def forward(
    rate: Tensor, into: Tensor, out: Tensor, step: Tensor, rule: str, unit: bool, scale: float, kind: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a, b and c as planes of `kind`; with `unit` b is empty and c has it."""
    rate, into, out, step = _wide(rate, into, out, step)
    a, f = _discretize(rate, step, rule)[:2]
    b, c = _against(step * f, into) * into, scale * out
    if unit:
        return _planes(a, kind), torch.empty(0, dtype=kind, device=a.device), _planes(b * c, kind)
    return _planes(a, kind), _planes(b, kind), _planes(c, kind)


def backward(
    grad_a: Tensor,
    grad_b: Tensor,
    grad_c: Tensor,
    rate: Tensor,
    into: Tensor,
    out: Tensor,
    step: Tensor,
    rule: str,
    unit: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of rate, into, out (planes) and step."""
    rate, into, out, step = _wide(rate, into, out, step)
    _, f, slope_a, slope_f = _discretize(rate, step, rule)
    wide = rate.real.dtype
    g_a, g_c = _complex(grad_a.to(wide)), _complex(grad_c.to(wide)) * scale
    if unit:
        g_out, g_b = g_c * _conj(_against(step * f, into) * into), g_c * _conj(out)
    else:
        g_out, g_b = g_c, _complex(grad_b.to(wide))
    g_into = g_b * _conj(_against(step * f, into))
    g_f = g_b * _conj(into)
    if g_f.dim() > rate.dim():  # S5: an input weight per channel, one f for all of them
        g_f = g_f.sum(-1)
    g_z = g_a * _conj(slope_a) + step * g_f * _conj(slope_f)
    g_step = (g_z * _conj(rate) + g_f * _conj(f)).real
    if g_step.dim() > step.dim():
        g_step = g_step.sum(0)
    return _planes(step * g_z, wide), _planes(g_into, wide), _planes(g_out, wide), g_step


def _discretize(rate: Tensor, step: Tensor, rule: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a, f / step, and the derivatives of both by z."""
    z = rate * step
    if rule == "bilinear":
        v = 1 / (1 - z / 2)
        return 1 + z * v, v, v * v, v * v / 2
    a = torch.exp(z)
    near = z.abs() < NEAR
    safe = torch.where(near, torch.ones_like(z), z)
    phi = torch.where(near, 1 + z / 2 * (1 + z / 3 * (1 + z / 4)), torch.expm1(z) / safe)
    slope = torch.where(near, 0.5 + z / 3 + z * z / 8 + z * z * z / 30, (a - phi) / safe)
    return a, phi, a, slope


def _wide(rate: Tensor, into: Tensor, out: Tensor, step: Tensor) -> tuple[Tensor, ...]:
    kind = torch.float32 if rate.device.type == "mps" else torch.float64
    return *(_complex(t.to(kind)) for t in (rate, into, out)), step.to(kind)


def _against(f: Tensor, weights: Tensor) -> Tensor:
    """Shape (P,) for a product with (P, H)."""
    return f[..., None] if weights.dim() > f.dim() else f


def _complex(planes: Tensor) -> Tensor:
    return torch.complex(planes[0], planes[1])


def _conj(x: Tensor) -> Tensor:
    """Compute the conjugate; marking it is lost on views in compiled graphs."""
    return x.conj_physical()


def _planes(x: Tensor, kind: torch.dtype) -> Tensor:
    return torch.stack([x.real, x.imag]).to(kind)
