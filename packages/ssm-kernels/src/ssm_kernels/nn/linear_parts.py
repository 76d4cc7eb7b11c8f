"""What the linear state-space mixers S4, S4D and S5 share: first steps, complex parameters, what follows the scan."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import refuse
from ..ops.linear_scan.discretize import Complex

IMAGINARY = ("real", "imag")


def log_steps(count: int, dt_min: float, dt_max: float) -> Tensor:
    """Draw the logarithms of steps that are log-uniform in [dt_min, dt_max], (count,) float32."""
    low, high = math.log(dt_min), math.log(dt_max)
    return low + (high - low) * torch.rand(count)


def complex_normal(*shape: int) -> Tensor:
    """Draw complex numbers of variance 1."""
    return torch.view_as_complex(torch.randn(*shape, 2) * math.sqrt(0.5))


def put_complex(module: nn.Module, name: str, value: Tensor) -> None:
    """Add the parameters <name>_real and <name>_imag, float32; optimizers and files then see real numbers only."""
    for part, numbers in zip(IMAGINARY, (value.real, value.imag), strict=True):
        module.register_parameter(f"{name}_{part}", nn.Parameter(numbers.to(torch.float32).clone()))


def get_complex(module: nn.Module, name: str) -> Complex:
    """Give them as the operators take them."""
    return getattr(module, f"{name}_real").float(), getattr(module, f"{name}_imag").float()


def scaled_steps(log_step: Tensor, scale: float) -> Tensor:
    """Give the steps, `scale` times as long."""
    return log_step.float().exp() * scale


def check_token(name: str, x: Tensor, d_model: int, bidirectional: bool) -> None:
    """Refuse anything but (B, C), and a step of a model that also sees the future."""
    if bidirectional:
        refuse(f"{name}.step", "bidirectional", "False", True, "the future is not there yet; call the module instead")
    if x.dim() != 2 or x.shape[-1] != d_model:
        refuse(f"{name}.step", "x", f"(B, {d_model})", tuple(x.shape), "x[:, t] is one step of (B, L, C)")


class GatedOutput(nn.Module):
    """GELU, then a linear layer to 2 C channels of which one half gates the other (GLU): what mixes the channels.

    Args:
        d_model: Channels C.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.linear = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        return F.glu(self.linear(F.gelu(x)), dim=-1)


class SigmoidOutput(nn.Module):
    """GELU, times the sigmoid of a linear layer of itself: S5, whose scan has mixed the channels already.

    Args:
        d_model: Channels C.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.linear = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        x = F.gelu(x)
        return x * torch.sigmoid(self.linear(x))
