"""mamba-ssm's `Mamba2Simple`, with its constructor and parameters.

Letters: B batch, L length, C channels outside, H heads, P channels of a head, N state, G groups of heads that share B
and C, k taps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn.mamba import check_sequence, wide
from .gated_norms import RMSNorm
from .mamba import inverse_softplus_of_steps, undecayed
from .mamba2 import convolution, heads, rates
from .ssd import ANY_STEP, mamba_split_conv1d_scan_combined


class Mamba2Simple(nn.Module):
    """The shorter `Mamba2Simple` of mamba-ssm: no caches, gate and norm fixed, perhaps initial states to be learnt.

    Args:
        d_model: Channels C of input and output.
        d_state: State variables N per channel.
        d_conv: Taps k of the convolution, 2..8.
        conv_init: Draw the filters uniform in +-conv_init; None is PyTorch's way.
        expand: H P = expand * C.
        headdim: Channels P of a head.
        ngroups: G, a divisor of H. The norm is over groups as in the fused path there.
        A_init_range: The initial rates are drawn from it.
        dt_min: Smallest initial step.
        dt_max: Largest initial step.
        dt_init_floor: No initial step is smaller.
        dt_limit: Bounds of the step in use.
        learnable_init_states: Have a parameter init_states (H, P, N).
        activation: Of the convolution, "silu" or "swish".
        bias: Give in_proj and out_proj a bias.
        conv_bias: Give the convolution a bias.
        chunk_size: Accepted; the operator cuts the sequence as it likes.
        use_mem_eff_path: Accepted; there is one path here.
        layer_idx: Accepted.
        device: Of the parameters.
        dtype: Of the parameters, except D, which is float32.

    Raises:
        ValueError: The sizes do not fit each other or, in `forward`, the input is not (B, L, C).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 128,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = ANY_STEP,
        learnable_init_states: bool = False,
        activation: str = "swish",
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.d_model, self.d_state, self.headdim, self.ngroups = d_model, d_state, headdim, ngroups
        self.d_inner = int(expand * d_model)
        self.nheads = heads("Mamba2Simple", self.d_inner, headdim, ngroups)
        self.dt_limit, self.activation, self.chunk_size = dt_limit, activation, chunk_size
        self.learnable_init_states = learnable_init_states
        factory = {"device": device, "dtype": dtype}
        projected = 2 * self.d_inner + 2 * ngroups * d_state + self.nheads
        self.in_proj = nn.Linear(d_model, projected, bias=bias, **factory)
        self.conv1d = convolution(self.d_inner + 2 * ngroups * d_state, d_conv, conv_bias, conv_init, factory)
        if learnable_init_states:
            self.init_states = undecayed(torch.zeros(self.nheads, headdim, d_state, **factory))
        steps = torch.empty(self.nheads, **factory)
        self.dt_bias = undecayed(inverse_softplus_of_steps(steps, dt_min, dt_max, dt_init_floor))
        self.A_log = rates("Mamba2Simple", self.nheads, A_init_range, factory)
        self.D = undecayed(torch.ones(self.nheads, device=device))
        self.norm = RMSNorm(self.d_inner, 1e-5, norm_before_gate=False, **factory)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory)

    def forward(self, u: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """Mix along the sequence: (B, L, C) to (B, L, C); `seq_idx` (B, L) keeps packed sequences apart."""
        check_sequence("Mamba2Simple", u, self.d_model)
        y = mamba_split_conv1d_scan_combined(
            self.in_proj(u),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            wide(self.dt_bias),
            -wide(self.A_log).exp(),
            wide(self.D),
            self.chunk_size,
            self.init_states.expand(u.shape[0], -1, -1, -1) if self.learnable_init_states else None,
            seq_idx,
            self.dt_limit,
            activation=self.activation,
            rmsnorm_weight=self.norm.weight,
            rmsnorm_eps=self.norm.eps,
            outproj_weight=self.out_proj.weight,
            outproj_bias=self.out_proj.bias,
            headdim=self.headdim,
            ngroups=self.ngroups,
            norm_before_gate=False,
        )
        assert isinstance(y, Tensor)
        return y
