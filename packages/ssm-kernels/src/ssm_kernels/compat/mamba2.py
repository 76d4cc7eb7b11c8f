"""mamba-ssm's `Mamba2`, with its constructor, parameters and caches.

Letters: B batch, L length, C channels outside, H heads, P channels of a head, N state, G groups of heads that share B
and C, k taps, S packed sequences.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from ..nn.mamba import check_sequence, wide
from ..ops.checks import refuse
from .cache import InferenceParams, State, state_of
from .conv import causal_conv1d_fn, causal_conv1d_update, causal_conv1d_varlen_states, last_steps
from .gated_norms import RMSNorm
from .mamba import inverse_softplus_of_steps, undecayed
from .ssd import ANY_STEP, gated_mlp, mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined
from .state_update import selective_state_update


class Mamba2(nn.Module):
    """Mamba-2 mixer under mamba-ssm's constructor; its checkpoints load.

    Args:
        d_model: Channels C of input and output.
        d_state: State variables N per channel.
        d_conv: Taps k of the convolution, 2..8.
        conv_init: Draw the filters uniform in +-conv_init; None is PyTorch's way.
        expand: d_inner = expand * C.
        headdim: Channels P of a head.
        d_ssm: Channels H P that are scanned; the others of d_inner make a gated MLP. None is all.
        ngroups: G, a divisor of H.
        A_init_range: The initial rates are drawn from it.
        D_has_hdim: Give every channel its own D, not every head.
        rmsnorm: Normalise before the last projection; without, z gates the scan's result.
        norm_before_gate: norm(y) * silu(z), else norm(y * silu(z)).
        dt_min: Smallest initial step.
        dt_max: Largest initial step.
        dt_init_floor: No initial step is smaller.
        dt_limit: Bounds of the step in use, in `step` too.
        bias: Give in_proj and out_proj a bias.
        conv_bias: Give the convolution a bias.
        chunk_size: Accepted; the operator cuts the sequence as it likes.
        use_mem_eff_path: Accepted; both paths give the same.
        layer_idx: Key of this layer's states in `inference_params`.
        process_group: Must be None: tensor parallelism is not covered.
        sequence_parallel: Accepted; it belongs to `process_group`.
        device: Of the parameters.
        dtype: Of the parameters, except D, which is float32.

    Raises:
        ValueError: The sizes do not fit each other, `process_group` is given or, in `forward`, the input has another
            shape.

    Source: Dao and Gu 2024, arXiv:2405.21060, section 7.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = ANY_STEP,
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: ProcessGroup | None = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if process_group is not None:
            refuse("Mamba2", "process_group", "None", "a group", "tensor parallelism is not covered")
        self.d_model, self.d_state, self.d_conv, self.conv_init, self.expand = (
            d_model,
            d_state,
            d_conv,
            conv_init,
            expand,
        )
        self.d_inner = int(expand * d_model)
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        self.headdim, self.ngroups = headdim, ngroups
        self.nheads = heads("Mamba2", self.d_ssm, headdim, ngroups)
        self.D_has_hdim, self.rmsnorm, self.norm_before_gate = D_has_hdim, rmsnorm, norm_before_gate
        self.dt_limit, self.activation, self.chunk_size = dt_limit, "silu", chunk_size
        self.use_mem_eff_path, self.layer_idx = use_mem_eff_path, layer_idx
        self.process_group, self.sequence_parallel, self.world_size, self.local_rank = None, sequence_parallel, 1, 0
        factory = {"device": device, "dtype": dtype}
        projected = 2 * self.d_inner + 2 * ngroups * d_state + self.nheads
        self.in_proj = nn.Linear(d_model, projected, bias=bias, **factory)
        self.conv1d = convolution(self.d_ssm + 2 * ngroups * d_state, d_conv, conv_bias, conv_init, factory)
        steps = torch.empty(self.nheads, **factory)
        self.dt_bias = undecayed(inverse_softplus_of_steps(steps, dt_min, dt_max, dt_init_floor))
        self.A_log = rates("Mamba2", self.nheads, A_init_range, factory)
        self.D = undecayed(torch.ones(self.d_ssm if D_has_hdim else self.nheads, device=device))
        if rmsnorm:
            size = self.d_ssm // ngroups
            self.norm = RMSNorm(self.d_ssm, 1e-5, size, norm_before_gate, **factory)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory)

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: InferenceParams | None = None,
    ) -> Tensor:
        """Mix along the sequence.

        Args:
            u: (B, L, C), or (B * L, C) with `seqlen` L.
            seqlen: See `u`.
            seq_idx: Which sequence a step belongs to, (B, L).
            cu_seqlens: With `inference_params`, bounds of the sequences packed in one row, (S + 1,).
            inference_params: Keeps the states: with seqlen_offset 0 they are filled, with a larger one L must be 1, and
                they are used and advanced.

        Returns:
            The shape of u.
        """
        x = u if seqlen is None else u.unflatten(0, (-1, seqlen))
        check_sequence("Mamba2", x, self.d_model)
        state = None
        if inference_params is not None:
            rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            state = self._get_states_from_cache(inference_params, rows)
            if inference_params.seqlen_offset > 0:
                return self.step(x, *state)[0]
        y = self._whole(x, seq_idx) if state is None else self._filling(x, seq_idx, cu_seqlens, state)
        return y if seqlen is None else y.flatten(0, 1)

    def _whole(self, x: Tensor, seq_idx: Tensor | None) -> Tensor:
        y = mamba_split_conv1d_scan_combined(
            self.in_proj(x),
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            wide(self.dt_bias),
            -wide(self.A_log).exp(),
            self._skip(),
            self.chunk_size,
            seq_idx=seq_idx,
            dt_limit=self.dt_limit,
            rmsnorm_weight=self.norm.weight if self.rmsnorm else None,
            rmsnorm_eps=self.norm.eps if self.rmsnorm else 1e-6,
            outproj_weight=self.out_proj.weight,
            outproj_bias=self.out_proj.bias,
            headdim=self.headdim,
            ngroups=self.ngroups,
            norm_before_gate=self.norm_before_gate,
        )
        assert isinstance(y, Tensor)
        return y

    def _filling(self, x: Tensor, seq_idx: Tensor | None, cu_seqlens: Tensor | None, state: State) -> Tensor:
        """Do the same while the states after the last steps are kept."""
        mlp, z, xBC, dt = self._parts(self.in_proj(x))
        with torch.no_grad():
            if cu_seqlens is None:
                state[0].copy_(last_steps(xBC.mT, self.d_conv, None))
            else:
                state[0].copy_(causal_conv1d_varlen_states(xBC[0], cu_seqlens, self.d_conv))
        if cu_seqlens is not None and seq_idx is None:
            seq_idx = _numbered(cu_seqlens, x.shape[1])
        xBC = causal_conv1d_fn(xBC.mT, self.conv1d.weight[:, 0], self.conv1d.bias, seq_idx, activation="silu")
        assert isinstance(xBC, Tensor)
        inner, B, C = self._inputs(xBC.mT)
        y, last = mamba_chunk_scan_combined(
            inner,
            dt,
            -wide(self.A_log).exp(),
            B,
            C,
            self.chunk_size,
            self._skip(),
            None if self.rmsnorm else z.unflatten(-1, (self.nheads, self.headdim)),
            wide(self.dt_bias),
            seq_idx=None if cu_seqlens is not None else seq_idx,
            cu_seqlens=cu_seqlens,
            dt_softplus=True,
            dt_limit=self.dt_limit,
            return_final_states=cu_seqlens is None,
            return_varlen_states=cu_seqlens is not None,
        )
        with torch.no_grad():
            state[1].copy_(last)
        return self._outputs(y.flatten(-2), z, mlp)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix one more step.

        Args:
            hidden_states: (B, 1, C).
            conv_state: The last inputs of the convolution, (B, H P + 2 G N, k), newest last; changed in place.
            ssm_state: State of the scan, (B, H, P, N); changed in place.

        Returns:
            The result (B, 1, C) and the two states.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[1] != 1:
            wanted = f"(B, 1, {self.d_model})"
            refuse("Mamba2.step", "hidden_states", wanted, tuple(hidden_states.shape), "decode one token at a time")
        mlp, z, xBC, dt = self._parts(self.in_proj(hidden_states.squeeze(1)))
        xBC = causal_conv1d_update(xBC, conv_state, self.conv1d.weight[:, 0], self.conv1d.bias, "silu")
        x, B, C = self._inputs(xBC)
        bias: Tensor | None = wide(self.dt_bias)
        bounded = tuple(self.dt_limit) != ANY_STEP
        if bounded:
            dt, bias = F.softplus(wide(dt) + bias).clamp(*self.dt_limit), None
        head = (self.nheads, self.headdim)
        y = selective_state_update(
            ssm_state,
            x,
            dt.unsqueeze(-1).expand_as(x),
            -wide(self.A_log).exp()[:, None, None].expand(*head, self.d_state),
            B,
            C,
            self._skip().view(self.nheads, -1).expand(head),
            None if self.rmsnorm else z.unflatten(-1, head),
            None if bias is None else bias.unsqueeze(-1).expand(head),
            dt_softplus=not bounded,
        )
        return self._outputs(y.flatten(-2), z, mlp).unsqueeze(1), conv_state, ssm_state

    def _parts(self, zxbcdt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mlp = 2 * (self.d_inner - self.d_ssm)
        sizes = [mlp, self.d_ssm, self.conv1d.in_channels, self.nheads]
        gates_and_values, z, xBC, dt = zxbcdt.split(sizes, -1)
        return gates_and_values, z, xBC, dt

    def _inputs(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut what was convolved into x (..., H, P) and B and C (..., G, N)."""
        x, B, C = xBC.split([self.d_ssm, *2 * [self.ngroups * self.d_state]], -1)
        groups = (self.ngroups, self.d_state)
        return x.unflatten(-1, (self.nheads, self.headdim)), B.unflatten(-1, groups), C.unflatten(-1, groups)

    def _outputs(self, y: Tensor, z: Tensor, mlp: Tensor) -> Tensor:
        if self.rmsnorm:
            y = self.norm(y, z)
        if mlp.shape[-1]:
            y = torch.cat([gated_mlp(mlp), y], -1)
        return self.out_proj(y)

    def _skip(self) -> Tensor:
        """Give D as (H,) or (H, P)."""
        return wide(self.D).view(self.nheads, -1) if self.D_has_hdim else wide(self.D)

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> State:
        """Give zero states: (B, H P + 2 G N, k) and (B, H, P, N); their size needs no length."""
        device, width = self.out_proj.weight.device, self.conv1d.in_channels
        conv_dtype = self.conv1d.weight.dtype if dtype is None else dtype
        ssm_dtype = self.in_proj.weight.dtype if dtype is None else dtype
        return (
            torch.zeros(batch_size, self.d_conv, width, device=device, dtype=conv_dtype).mT,
            torch.zeros(batch_size, self.nheads, self.headdim, self.d_state, device=device, dtype=ssm_dtype),
        )

    def _get_states_from_cache(
        self, inference_params: InferenceParams, batch_size: int, initialize_states: bool = False
    ) -> State:
        return state_of(self, inference_params, batch_size, initialize_states)


def heads(name: str, channels: int, headdim: int, groups: int) -> int:
    """Count the heads of so many channels."""
    if channels % headdim:
        refuse(name, "headdim", f"a divisor of the {channels} channels that are scanned", headdim, "heads are alike")
    count = channels // headdim
    if count % groups:
        refuse(name, "ngroups", f"a divisor of the {count} heads", groups, "groups are equally large")
    return count


def convolution(channels: int, taps: int, bias: bool, conv_init: float | None, factory: dict[str, Any]) -> nn.Conv1d:
    """Make the convolution over x, B and C."""
    conv = nn.Conv1d(channels, channels, taps, groups=channels, padding=taps - 1, bias=bias, **factory)
    if conv_init is not None:
        nn.init.uniform_(conv.weight, -conv_init, conv_init)
    return conv


def rates(name: str, count: int, bounds: tuple[float, float], factory: dict[str, Any]) -> nn.Parameter:
    """Draw the logarithms of the rates."""
    low, high = bounds
    if not 0 < low <= high < math.inf:
        refuse(name, "A_init_range", "two positive numbers, the smaller one first", bounds, "(1, 16) is usual")
    drawn = torch.empty(count, device=factory["device"]).uniform_(low, high)
    return undecayed(drawn.log().to(factory["dtype"]))


def _numbered(cu_seqlens: Tensor, length: int) -> Tensor:
    """Give the sequence that each step of the one row belongs to, (1, L)."""
    steps = torch.arange(length, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens[1:].long(), steps, right=True).unsqueeze(0)
