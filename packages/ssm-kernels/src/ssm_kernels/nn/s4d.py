"""S4D: a linear state-space model of every channel by itself, with a diagonal state matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.dispatch import Impl
from ..ops.linear_scan.api import Mode
from ..ops.linear_scan.arguments import Modes, wide
from ..ops.linear_scan.discretize import Complex, Discretization
from ..ops.linear_scan.run import run
from .hippo import Init, s4d_modes
from .linear_parts import (
    GatedOutput,
    check_token,
    complex_normal,
    get_complex,
    log_steps,
    put_complex,
    scaled_steps,
)
from .mamba import check_sequence


class S4D(nn.Module):
    """Diagonal linear state-space mixer: scan, skip weight D, then GELU and a gated linear layer.

    Parameters: log_A_real (C, M) with Re Lambda = -exp(log_A_real), A_imag (C, M), B_real, B_imag, C_real, C_imag
    (C, M), log_step (C), D (C); bidirectional also C_b_real, C_b_imag; out.linear.{weight (2C, C), bias (2C)}. M is
    d_state / 2, for init="real" d_state, and then the imaginary parts are missing. Keep log_A_real, A_imag, B, log_step
    and D out of weight decay; the papers train them with a smaller learning rate (1e-3).

    Args:
        d_model: Channels C of input and output.
        d_state: Real states N per channel.
        init: First Lambda: "legs" (HiPPO), "inv", "lin" or "real"; B starts at 1, C normal with variance 1.
        discretization: "zoh" or "bilinear".
        bidirectional: Add a scan from the end with output weights of its own.
        project: Follow up with GELU and a gated linear layer. False leaves the scan and D, for use inside a block that
            has projections of its own.
        dt_min: Smallest first step, > 0.
        dt_max: Largest first step.
        mode: "scan" or "fft", as in `linear_scan`.
        impl: Implementation of the scan.

    Raises:
        ValueError: `init` is unknown or `d_state` odd; in `forward`, the input is not (B, L, C).

    Source: Gu et al. 2022, arXiv:2206.11893, sections 3 and 4.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        init: Init = "legs",
        discretization: Discretization = "zoh",
        bidirectional: bool = False,
        project: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        mode: Mode = "scan",
        impl: Impl = "auto",
    ):
        super().__init__()
        Lambda = s4d_modes(init, d_state)
        self.d_model, self.modes, self.bidirectional, self.paired = d_model, len(Lambda), bidirectional, init != "real"
        self.discretization: Discretization = discretization
        self.mode: Mode = mode
        self.impl: Impl = impl
        shape = (d_model, self.modes)
        self.log_A_real = nn.Parameter((-Lambda.real).log().expand(shape).float().clone())
        outputs = ("C", "C_b") if bidirectional else ("C",)
        if self.paired:
            self.A_imag = nn.Parameter(Lambda.imag.expand(shape).float().clone())
            put_complex(self, "B", torch.ones(shape, dtype=torch.complex64))
            for name in outputs:
                put_complex(self, name, complex_normal(*shape))
        else:
            self.B_real = nn.Parameter(torch.ones(shape))
            for name in outputs:
                self.register_parameter(f"{name}_real", nn.Parameter(torch.randn(shape)))
        self.log_step = nn.Parameter(log_steps(d_model, dt_min, dt_max))
        self.D = nn.Parameter(torch.randn(d_model))
        self.out = GatedOutput(d_model) if project else nn.Identity()

    def forward(self, x: Tensor, *, step_scale: float = 1.0) -> Tensor:
        """Mix along the sequence: (B, L, C) to (B, L, C).

        Args:
            x: Input.
            step_scale: Factor of the steps: a signal sampled k times as finely as in training wants 1 / k.
        """
        check_sequence("S4D", x, self.d_model)
        y = self._scan(x, "C", step_scale, reverse=False)
        if self.bidirectional:
            y = y + self._scan(x, "C_b", step_scale, reverse=True)
        return self.out(y + self.D.to(x.dtype) * x)

    def initial_state(self, batch: int) -> Tensor:
        """Return the state before the first step: zeros (B, C, M, 2), real and imaginary parts last."""
        return self.D.new_zeros(batch, self.d_model, self.modes, 2)

    def step(self, x: Tensor, state: Tensor, *, step_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Take one step: x (B, C) and a state to y (B, C) and the next state; steps in a row are `forward`.

        Raises:
            ValueError: The input is not (B, C), or the module is bidirectional.
        """
        check_token("S4D", x, self.d_model, self.bidirectional)
        before = state.to(wide(x)).unbind(-1)
        y, after = run(
            x[:, None],
            self._modes("C", step_scale),
            discretization=self.discretization,
            initial_state=(before[0], before[1]),
            final=True,
            impl=self.impl,
        )
        return self.out(y[:, 0] + self.D.to(x.dtype) * x), torch.stack(after, -1)

    def _scan(self, x: Tensor, name: str, step_scale: float, *, reverse: bool) -> Tensor:
        return run(
            x,
            self._modes(name, step_scale),
            mode=self.mode,
            discretization=self.discretization,
            reverse=reverse,
            impl=self.impl,
        )[0]

    def _modes(self, name: str, step_scale: float) -> Modes:
        rate = -self.log_A_real.float().exp()
        if self.paired:
            parts = (rate, self.A_imag), get_complex(self, "B"), get_complex(self, name)
        else:
            parts = (rate, torch.zeros_like(rate)), self._real("B"), self._real(name)
        return Modes.of(*parts, scaled_steps(self.log_step, step_scale), 2.0 if self.paired else 1.0)

    def _real(self, name: str) -> Complex:
        value = getattr(self, f"{name}_real").float()
        return value, torch.zeros_like(value)
