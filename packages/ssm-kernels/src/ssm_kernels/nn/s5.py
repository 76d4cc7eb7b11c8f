"""S5: one linear state-space model with many inputs and outputs, whose states all channels share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops.checks import refuse
from ..ops.dispatch import Impl
from ..ops.linear_scan.api import Mode
from ..ops.linear_scan.arguments import Modes, wide
from ..ops.linear_scan.discretize import Discretization
from ..ops.linear_scan.run import run
from .hippo import legs_modes
from .linear_parts import (
    SigmoidOutput,
    check_token,
    get_complex,
    log_steps,
    put_complex,
    scaled_steps,
)
from .mamba import check_sequence


class S5(nn.Module):
    """Linear state-space mixer with states that all channels share: scan, skip weight D, then GELU and its gate.

    Parameters: log_A_real (P) with Re Lambda = -exp(log_A_real), A_imag (P), B_real, B_imag (P, C), C_real, C_imag
    (C, P), log_step (P), D (C); bidirectional also C_b_real, C_b_imag (together the C of twice the width of the
    paper); out.linear.{weight (C, C), bias (C)}. P is d_state / 2. Keep log_A_real, A_imag, log_step and D out of
    weight decay; the paper trains them and B with a smaller learning rate.

    Args:
        d_model: Channels C of input and output.
        d_state: Real states of the model; None is d_model rounded up to whole blocks.
        blocks: The first state matrix is this many blocks of HiPPO-N, the normal part of HiPPO-LegS.
        discretization: "zoh" or "bilinear".
        bidirectional: Add a scan from the end with output weights of its own.
        project: Follow up with GELU and its gate. False leaves the scan and D.
        dt_min: Smallest first step, > 0; every state has its own.
        dt_max: Largest first step.
        mode: "scan" or "fft", as in `linear_scan`.
        impl: Implementation of the scan.

    Raises:
        ValueError: `d_state` is not a multiple of twice the blocks; in `forward`, the input is not (B, L, C).

    Source: Smith et al. 2023, arXiv:2208.04933, sections 3 and 4, appendix B.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int | None = None,
        blocks: int = 1,
        discretization: Discretization = "zoh",
        bidirectional: bool = False,
        project: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        mode: Mode = "scan",
        impl: Impl = "auto",
    ):
        super().__init__()
        if blocks < 1:
            refuse("S5", "blocks", "at least 1", blocks, "1 is the default of the paper's small models")
        if d_state is None:
            d_state = -(-d_model // (2 * blocks)) * 2 * blocks
        if d_state < 2 * blocks or d_state % (2 * blocks):
            remedy = "every block has states in conjugate pairs"
            refuse("S5", "d_state", f"a multiple of 2 * blocks = {2 * blocks}", d_state, remedy)
        self.d_model, self.modes, self.bidirectional = d_model, d_state // 2, bidirectional
        self.discretization: Discretization = discretization
        self.mode: Mode = mode
        self.impl: Impl = impl
        Lambda, _, _, V = legs_modes(d_state // blocks)
        self.log_A_real = nn.Parameter((-Lambda.real).log().repeat(blocks).float())
        self.A_imag = nn.Parameter(Lambda.imag.repeat(blocks).float())
        V = torch.block_diag(*[V] * blocks)  # (d_state, P)
        put_complex(self, "B", V.mH @ (torch.randn(d_state, d_model) / math.sqrt(d_model)).to(V.dtype))
        for name in ("C", "C_b") if bidirectional else ("C",):
            put_complex(self, name, (torch.randn(d_model, d_state) / math.sqrt(d_state)).to(V.dtype) @ V)
        self.log_step = nn.Parameter(log_steps(self.modes, dt_min, dt_max))
        self.D = nn.Parameter(torch.randn(d_model))
        self.out = SigmoidOutput(d_model) if project else nn.Identity()

    def forward(self, x: Tensor, *, step_scale: float = 1.0) -> Tensor:
        """Mix along the sequence and across channels: (B, L, C) to (B, L, C).

        Args:
            x: Input.
            step_scale: Factor of the steps: a signal sampled k times as finely as in training wants 1 / k.
        """
        check_sequence("S5", x, self.d_model)
        y = self._scan(x, "C", step_scale, reverse=False)
        if self.bidirectional:
            y = y + self._scan(x, "C_b", step_scale, reverse=True)
        return self.out(y + self.D.to(x.dtype) * x)

    def initial_state(self, batch: int) -> Tensor:
        """Return the state before the first step: zeros (B, P, 2), real and imaginary parts last."""
        return self.D.new_zeros(batch, self.modes, 2)

    def step(self, x: Tensor, state: Tensor, *, step_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Take one step: x (B, C) and a state to y (B, C) and the next state; steps in a row are `forward`.

        Raises:
            ValueError: The input is not (B, C), or the module is bidirectional.
        """
        check_token("S5", x, self.d_model, self.bidirectional)
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
        rate = -self.log_A_real.float().exp(), self.A_imag.float()
        into, out = get_complex(self, "B"), get_complex(self, name)
        return Modes.of(rate, into, out, scaled_steps(self.log_step, step_scale), 2.0)
