"""S4: a linear state-space model of every channel by itself, whose state matrix is diagonal less a rank of one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.linear_scan.arguments import precise, wide
from ..ops.linear_scan.discretize import Complex
from ..ops.long_conv1d import long_conv1d
from ..ops.s4_kernel import dense
from ..ops.s4_kernel.api import Method, kernel_of
from .hippo import legs_modes
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


class S4(nn.Module):
    """Linear state-space mixer with the HiPPO-LegS matrix: convolution, skip weight D, then GELU and a gated layer.

    Parameters: log_A_real (C, M) with Re Lambda = -exp(log_A_real), A_imag (C, M), P_real, P_imag, B_real, B_imag,
    C_real, C_imag (C, M), log_step (C), D (C); bidirectional also C_b_real, C_b_imag; out.linear.{weight (2C, C), bias
    (2C)}. M is d_state / 2. Keep log_A_real, A_imag, P, B, log_step and D out of weight decay; the paper trains them
    with a smaller learning rate (1e-3). C is that of the model and not C (1 - A^L): one state dict serves any length.

    Args:
        d_model: Channels C of input and output.
        d_state: Real states N per channel, even.
        bidirectional: Add a filter of the future with output weights of its own.
        project: Follow up with GELU and a gated linear layer. False leaves the convolution and D, for use inside a
            block that has projections of its own.
        dt_min: Smallest first step, > 0.
        dt_max: Largest first step.
        method: How the filter is made, as in `s4_kernel`. While a model is exported it is "dense", which has real
            arithmetic only.

    Raises:
        ValueError: `d_state` is odd; in `forward`, the input is not (B, L, C).

    Source: Gu et al. 2021, arXiv:2111.00396.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        bidirectional: bool = False,
        project: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        method: Method = "cauchy",
    ):
        super().__init__()
        Lambda, low_rank, into, _ = legs_modes(d_state)
        self.d_model, self.d_state, self.bidirectional = d_model, d_state, bidirectional
        self.method: Method = method
        shape = (d_model, d_state // 2)
        self.log_A_real = nn.Parameter((-Lambda.real).log().expand(shape).float().clone())
        self.A_imag = nn.Parameter(Lambda.imag.expand(shape).float().clone())
        put_complex(self, "P", low_rank.expand(shape))
        put_complex(self, "B", into.expand(shape))
        for name in ("C", "C_b") if bidirectional else ("C",):
            put_complex(self, name, complex_normal(*shape))
        self.log_step = nn.Parameter(log_steps(d_model, dt_min, dt_max))
        self.D = nn.Parameter(torch.randn(d_model))
        self.out = GatedOutput(d_model) if project else nn.Identity()

    def forward(self, x: Tensor, *, step_scale: float = 1.0) -> Tensor:
        """Mix along the sequence: (B, L, C) to (B, L, C).

        Args:
            x: Input.
            step_scale: Factor of the steps: a signal sampled k times as finely as in training wants 1 / k.
        """
        check_sequence("S4", x, self.d_model)
        ahead = self.kernel(x.shape[1], step_scale=step_scale)
        back = self.kernel(x.shape[1], step_scale=step_scale, back=True) if self.bidirectional else None
        y = long_conv1d(x, ahead, kernel_back=back)
        return self.out(y + self.D.to(x.dtype) * x)

    def kernel(self, length: int, *, step_scale: float = 1.0, back: bool = False) -> Tensor:
        """Return the filter, (C, L) float32; `back` that of the future."""
        method: Method = "dense" if torch.compiler.is_exporting() else self.method
        rate, low_rank, into, out, step = self._model("C_b" if back else "C", step_scale)
        return kernel_of(rate, low_rank, into, out, step, length, method, torch.float32)

    def matrices(self, *, step_scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Return the discretised A (C, N, N), B (C, N) and C (C, N), float32, for many calls of `step`."""
        A, B, C = dense.discretize(*self._model("C", step_scale))
        return A.float(), B.float(), C.float()

    def initial_state(self, batch: int) -> Tensor:
        """Return the state before the first step: zeros (B, C, N)."""
        return self.D.new_zeros(batch, self.d_model, self.d_state)

    def step(
        self,
        x: Tensor,
        state: Tensor,
        *,
        matrices: tuple[Tensor, Tensor, Tensor] | None = None,
        step_scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Take one step: x (B, C) and a state to y (B, C) and the next state; steps in a row are `forward`.

        Args:
            x: Input, (B, C).
            state: State (B, C, N).
            matrices: What `matrices()` returned; None makes them for this step, which costs far more than the step.
            step_scale: As in `forward`; of no effect on given matrices.

        Raises:
            ValueError: The input is not (B, C), or the module is bidirectional.
        """
        check_token("S4", x, self.d_model, self.bidirectional)
        A, B, C = self.matrices(step_scale=step_scale) if matrices is None else matrices
        kind = wide(x)
        with torch.autocast(x.device.type, enabled=False):
            after = (A.to(kind) @ state.to(kind)[..., None])[..., 0] + B.to(kind) * x.to(kind)[..., None]
            y = (after * C.to(kind)).sum(-1).to(x.dtype)
        return self.out(y + self.D.to(x.dtype) * x), after

    def _model(self, name: str, step_scale: float) -> tuple[Complex, Complex, Complex, Complex, Tensor]:
        kind = precise(self.log_step.device)
        rate = -self.log_A_real.to(kind).exp(), self.A_imag.to(kind)
        low_rank, into, out = (
            (real.to(kind), imag.to(kind)) for real, imag in (get_complex(self, key) for key in ("P", "B", name))
        )
        return rate, low_rank, into, out, scaled_steps(self.log_step, step_scale).to(kind)
