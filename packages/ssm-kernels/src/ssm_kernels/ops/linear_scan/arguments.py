"""Checks of the arguments, and modes as the operators take them: discretised, as planes of real numbers.

Letters: B batch, L length, D channels, M modes of a channel; for S5 H channels, P modes shared by them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import FLOATING, check_device, check_floating, refuse
from ..linear_modes.autograd import linear_modes_op
from .discretize import Complex, Discretization

COMPLEX = (torch.complex64, torch.complex128)


def check_modes(op: str, x: Tensor, Lambda: Tensor, B: Tensor, C: Tensor, step: Tensor, name_C: str = "C") -> None:
    """Check dtypes, devices and shapes of a linear scan's arguments; the channels are the last size of x."""
    check_floating(op, "x", x)
    check_floating(op, "step", step)
    for name, tensor in {"Lambda": Lambda, "B": B, name_C: C, "step": step}.items():
        check_device(op, name, tensor, x)
        if tensor.dtype not in FLOATING + COMPLEX:
            refuse(op, name, "complex or floating", str(tensor.dtype).removeprefix("torch."), "convert it")
    for name, tensor in {"B": B, name_C: C}.items():
        if tensor.is_complex() and not Lambda.is_complex():
            remedy = "use Lambda.to(torch.complex64), of which the scan takes one of each conjugate pair"
            refuse(op, name, "real, as Lambda is", str(tensor.dtype).removeprefix("torch."), remedy)
    channels = x.shape[-1]
    shared = Lambda.dim() == 1
    if Lambda.dim() not in (1, 2) or Lambda.shape[-1] == 0 or (not shared and Lambda.shape[0] != channels):
        wanted = f"(D, M) with D={channels}, or (P,) for modes that all channels share"
        refuse(op, "Lambda", wanted, tuple(Lambda.shape), "D is the last size of x")
    modes = Lambda.shape[-1]
    if shared:
        shapes = {"B": ("(P, H)", (modes, channels)), name_C: ("(H, P)", (channels, modes)), "step": ("(P,)", (modes,))}
    else:
        pair = ("(D, M)", (channels, modes))
        shapes = {"B": pair, name_C: pair, "step": ("(D,)", (channels,))}
    for name, tensor in {"B": B, name_C: C, "step": step}.items():
        legend, wanted = shapes[name]
        if tuple(tensor.shape) != wanted:
            refuse(op, name, f"{legend} = {wanted}", tuple(tensor.shape), "M and P are the last size of Lambda")


def check_state(op: str, name: str, state: Tensor | None, x: Tensor, Lambda: Tensor) -> None:
    """Check a state, which is complex if Lambda is."""
    if state is None:
        return
    check_device(op, name, state, x)
    if state.dtype not in (COMPLEX if Lambda.is_complex() else FLOATING):
        wanted = "complex, as Lambda is" if Lambda.is_complex() else "floating, as Lambda is"
        refuse(op, name, wanted, str(state.dtype).removeprefix("torch."), "pass the final state of a run")
    shape = (x.shape[0], *Lambda.shape)
    if tuple(state.shape) != shape:
        legend = "(B, P)" if Lambda.dim() == 1 else "(B, D, M)"
        refuse(op, name, f"{legend} = {shape}", tuple(state.shape), "pass the final state of a run")


def parts(x: Tensor, kind: torch.dtype) -> Complex:
    """Return real and imaginary part, zeros for a real tensor."""
    if x.is_complex():
        pair = torch.view_as_real(x)
        return pair[..., 0].to(kind), pair[..., 1].to(kind)
    real = x.to(kind)
    return real, torch.zeros_like(real)


@dataclass(frozen=True)
class Modes:
    """Modes as the operators take them: planes, real parts first.

    Attributes:
        rate: Lambda, (2, M, D), for S5 (2, P).
        into: B, (2, M, D), for S5 (2, P, H).
        out: C, (2, M, D), for S5 (2, H, P).
        step: Length of a step, (D,) or (P,).
        scale: Of the sum over the modes: 2 where every one stands for itself and its conjugate.
    """

    rate: Tensor
    into: Tensor
    out: Tensor
    step: Tensor
    scale: float

    @classmethod
    def of(cls, rate: Complex, into: Complex, out: Complex, step: Tensor, scale: float) -> Modes:
        """Take them as the public functions do, (D, M), or for S5 (P,), (P, H) and (H, P)."""
        if rate[0].dim() == 1:
            return cls(torch.stack(rate), torch.stack(into), torch.stack(out), step, scale)
        turned = [torch.stack((pair[0].mT, pair[1].mT)) for pair in (rate, into, out)]
        return cls(turned[0], turned[1], turned[2], step, scale)

    @property
    def shared(self) -> bool:
        """Whether all channels share the modes, as in S5."""
        return self.rate.dim() == 2

    def discretized(
        self, x: Tensor, discretization: Discretization, impl: str, *, unit: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return a, b = f B and c for x; with `unit` c has b in it and b is empty."""
        return linear_modes_op(
            self.rate,
            self.into,
            self.out,
            self.step,
            discretization,
            unit,
            self.scale,
            x.dtype == torch.float64,
            "torch" if impl == "torch" else "auto",
        )


def wide(x: Tensor) -> torch.dtype:
    """Return the dtype of states."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def precise(device: torch.device) -> torch.dtype:
    """Return the widest dtype of a device."""
    return torch.float32 if device.type == "mps" else torch.float64
