"""Checks of the arguments, and modes as the operators take them: discretised, as planes of real numbers.

Letters: B batch, L length, D channels, M modes of a channel; for S5 H channels, P modes shared by them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import FLOATING, check_device, check_floating, refuse
from .discretize import Complex, Discretization, discretize, times

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
class Pairs:
    """Arguments of a linear scan as real and imaginary parts, of any shape that `linear_scan` takes.

    Attributes:
        rate: Lambda.
        into: B.
        out: C.
        step: Length of a step.
        kind: Of the states: float32 or float64.
        twice: Every mode stands for itself and its conjugate.
    """

    rate: Complex
    into: Complex
    out: Complex
    step: Tensor
    kind: torch.dtype
    twice: bool

    @classmethod
    def of(cls, x: Tensor, Lambda: Tensor, B: Tensor, C: Tensor, step: Tensor) -> Pairs:
        """Take them apart."""
        fine, kind = precise(x.device), wide(x)
        return cls(parts(Lambda, fine), parts(B, fine), parts(C, kind), step.to(fine), kind, Lambda.is_complex())

    @property
    def shared(self) -> bool:
        """Whether all channels share the modes, as in S5."""
        return self.rate[0].dim() == 1

    def weights(self) -> Complex:
        """Return C, doubled where a mode stands for two."""
        return (2 * self.out[0], 2 * self.out[1]) if self.twice else self.out

    def discretized(self, discretization: Discretization) -> tuple[Complex, Complex]:
        """Return a and b = f B with the modes' axis first: (M, D), for S5 (P,) and (P, H).

        The powers of a along a row multiply its rounding by their number. So a is computed in float64, of which there
        are few numbers, and rounded once.
        """
        if self.shared:
            a, f = discretize(self.rate, self.step, discretization)
            b = times((f[0][:, None], f[1][:, None]), self.into)
        else:
            a, f = discretize((self.rate[0].mT, self.rate[1].mT), self.step, discretization)
            b = times(f, (self.into[0].mT, self.into[1].mT))
        return (a[0].to(self.kind), a[1].to(self.kind)), (b[0].to(self.kind), b[1].to(self.kind))


def wide(x: Tensor) -> torch.dtype:
    """Return the dtype of states."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def precise(device: torch.device) -> torch.dtype:
    """Return the widest dtype of a device."""
    return torch.float32 if device.type == "mps" else torch.float64
