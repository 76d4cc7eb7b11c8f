"""mamba-ssm's `Mamba`, with its constructor, parameters and caches, and the bidirectional forms of Vim's copy of it.

Letters: B batch, L length, C channels outside, D channels inside, N state, k taps, R rank of the step projection.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn.mamba import check_sequence, initial_A_log, resolve_dt_rank, scan_inputs, wide
from ..ops.checks import refuse
from ..ops.selective_scan import selective_scan
from ..ops.selective_scan_bidirectional import selective_scan_bidirectional
from .cache import InferenceParams, State, state_of
from .conv import causal_conv1d_update, last_steps
from .errors import UnknownChoice
from .state_update import selective_state_update

Bimamba = Literal["none", "v1", "v2"]


class Mamba(nn.Module):
    """Selective state-space mixer under mamba-ssm's constructor; checkpoints of mamba-ssm and of Vim load.

    Args:
        d_model: Channels C of input and output.
        d_state: State variables N per channel.
        d_conv: Taps k of the convolution, 2..8.
        expand: D = expand * C.
        dt_rank: Rank R of the projection that makes the step; "auto" is C / 16, rounded up.
        dt_min: Smallest initial step.
        dt_max: Largest initial step.
        dt_init: Initial weight of dt_proj: "random", uniform in +-s, or "constant", s, with s = dt_scale * R^-0.5.
        dt_scale: See `dt_init`.
        dt_init_floor: No initial step is smaller.
        conv_bias: Give the convolution a bias.
        bias: Give in_proj and out_proj a bias.
        use_fast_path: Accepted; there is one path here.
        layer_idx: Key of this layer's states in `inference_params`.
        device: Of the parameters.
        dtype: Of the parameters, except A_log and D, which are float32.
        bimamba_type: Vim's: "v1" scans from both ends what one convolution made, "v2" has a convolution, projections, A
            and D of its own (with _b in their names) for the scan from the end.
        if_divide_out: Vim's: halve the sum of the two directions of "v2".
        init_layer_scale: Vim's: multiply the result by a parameter `gamma` (C,) of this initial value.
        if_devide_out: `if_divide_out` in older copies of Vim.

    Raises:
        UnknownChoice: `dt_init` is another one.
        ValueError: `bimamba_type` is unknown; in `forward`, the input is not (B, L, C).

    Source: Gu and Dao 2023, arXiv:2312.00752; Zhu et al. 2024, arXiv:2401.09417 (both directions).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bimamba_type: Bimamba = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
        if_devide_out: bool = False,
    ):
        super().__init__()
        if bimamba_type not in ("none", "v1", "v2"):
            refuse("Mamba", "bimamba_type", "'none', 'v1' or 'v2'", repr(bimamba_type), "'v2' is Vim's")
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = resolve_dt_rank(dt_rank, d_model)
        self.use_fast_path, self.layer_idx, self.activation = use_fast_path, layer_idx, "silu"
        self.bimamba_type: Bimamba = bimamba_type
        self.if_divide_out = if_divide_out or if_devide_out
        self.init_layer_scale = init_layer_scale
        factory = {"device": device, "dtype": dtype}
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(torch.full((d_model,), init_layer_scale))
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **factory)
        self.conv1d = self._convolution(conv_bias, factory)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **factory)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, **factory)
        _init_dt_proj(self.dt_proj, dt_init, dt_scale, dt_min, dt_max, dt_init_floor)
        self.A_log = self._rates(device)
        self.D = undecayed(torch.ones(self.d_inner, device=device))
        if bimamba_type != "none":
            self.A_b_log = self._rates(device)
        if bimamba_type == "v2":
            self.conv1d_b = self._convolution(conv_bias, factory)
            self.x_proj_b = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **factory)
            self.dt_proj_b = nn.Linear(self.dt_rank, self.d_inner, **factory)
            self.D_b = undecayed(torch.ones(self.d_inner, device=device))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory)

    def _convolution(self, bias: bool, factory: dict[str, Any]) -> nn.Conv1d:
        width = self.d_inner
        return nn.Conv1d(width, width, self.d_conv, groups=width, padding=self.d_conv - 1, bias=bias, **factory)

    def _rates(self, device: torch.device | str | None) -> nn.Parameter:
        return undecayed(initial_A_log(self.d_inner, self.d_state).to(device))

    def forward(self, hidden_states: Tensor, inference_params: InferenceParams | None = None) -> Tensor:
        """Mix along the sequence.

        Args:
            hidden_states: (B, L, C).
            inference_params: Keeps the states: with seqlen_offset 0 they are filled, with a larger one L must be 1, and
                they are used and advanced.

        Returns:
            (B, L, C).
        """
        check_sequence("Mamba", hidden_states, self.d_model)
        state = None
        if inference_params is not None:
            if self.bimamba_type != "none":
                refuse("Mamba", "inference_params", "None with two directions", "a cache", "each step sees all others")
            state = self._get_states_from_cache(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, *state)[0]
        inner, z = self.in_proj(hidden_states).chunk(2, -1)
        y = self._ahead(inner, z, state) if self.bimamba_type == "none" else self._both_ends(inner, z)
        out = self.out_proj(y)
        return out if self.init_layer_scale is None else out * self.gamma

    def _ahead(self, inner: Tensor, z: Tensor, state: State | None) -> Tensor:
        x, dt, B, C = scan_inputs(inner, self.conv1d, self.x_proj, self.dt_proj, reverse=False, impl="auto")
        A, D, dt_bias = -wide(self.A_log).exp(), wide(self.D), wide(self.dt_proj.bias)
        y, last = selective_scan(x, dt, A, B, C, D, z=z, dt_bias=dt_bias, dt_softplus=True, return_final_state=True)
        if state is not None:
            with torch.no_grad():
                state[0].copy_(last_steps(inner.mT, self.d_conv, None))
                state[1].copy_(last)
        return y

    def _both_ends(self, inner: Tensor, z: Tensor) -> Tensor:
        """Scan from both ends; nothing is flipped."""
        x, dt, B, C = scan_inputs(inner, self.conv1d, self.x_proj, self.dt_proj, reverse=False, impl="auto")
        ahead = (x, dt, -wide(self.A_log).exp(), B, C, wide(self.D), wide(self.dt_proj.bias))
        A_b = -wide(self.A_b_log).exp()
        if self.bimamba_type == "v1":
            back = (x, dt, A_b, *ahead[3:])
        else:
            x, dt, B, C = scan_inputs(inner, self.conv1d_b, self.x_proj_b, self.dt_proj_b, reverse=True, impl="auto")
            back = (x, dt, A_b, B, C, wide(self.D_b), wide(self.dt_proj_b.bias))
        average = self.if_divide_out and self.bimamba_type == "v2"
        return selective_scan_bidirectional(*ahead, *back, z=z, dt_softplus=True, average=average)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix one more step.

        Args:
            hidden_states: (B, 1, C).
            conv_state: The last inputs of the convolution, (B, D, k), newest last; changed in place.
            ssm_state: State of the scan, (B, D, N); changed in place.

        Returns:
            The result (B, 1, C) and the two states.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[1] != 1:
            wanted = f"(B, 1, {self.d_model})"
            refuse("Mamba.step", "hidden_states", wanted, tuple(hidden_states.shape), "decode one token at a time")
        x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, -1)
        x = causal_conv1d_update(x, conv_state, self.conv1d.weight[:, 0], self.conv1d.bias, "silu")
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        y = selective_state_update(
            ssm_state,
            x,
            F.linear(dt, self.dt_proj.weight),
            -wide(self.A_log).exp(),
            B,
            C,
            wide(self.D),
            z,
            wide(self.dt_proj.bias),
            dt_softplus=True,
        )
        out = self.out_proj(y)
        if self.init_layer_scale is not None:
            out = out * self.gamma
        return out.unsqueeze(1), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> State:
        """Give zero states: (B, D, k) for the convolution and (B, D, N) for the scan; their size needs no length."""
        device = self.out_proj.weight.device
        conv_dtype = self.conv1d.weight.dtype if dtype is None else dtype
        ssm_dtype = self.dt_proj.weight.dtype if dtype is None else dtype
        return (
            torch.zeros(batch_size, self.d_inner, self.d_conv, device=device, dtype=conv_dtype),
            torch.zeros(batch_size, self.d_inner, self.d_state, device=device, dtype=ssm_dtype),
        )

    def _get_states_from_cache(
        self, inference_params: InferenceParams, batch_size: int, initialize_states: bool = False
    ) -> State:
        return state_of(self, inference_params, batch_size, initialize_states)


def _init_dt_proj(dt_proj: nn.Linear, kind: str, scale: float, dt_min: float, dt_max: float, floor: float) -> None:
    bound = dt_proj.in_features**-0.5 * scale
    if kind == "constant":
        nn.init.constant_(dt_proj.weight, bound)
    elif kind == "random":
        nn.init.uniform_(dt_proj.weight, -bound, bound)
    else:
        raise UnknownChoice(f"Mamba: dt_init must be 'constant' or 'random', got {kind!r}")
    with torch.no_grad():
        dt_proj.bias.copy_(inverse_softplus_of_steps(dt_proj.bias, dt_min, dt_max, floor))
    dt_proj.bias._no_reinit = True  # pyright: ignore[reportAttributeAccessIssue] # what public initialisers look for


def inverse_softplus_of_steps(like: Tensor, dt_min: float, dt_max: float, floor: float) -> Tensor:
    """Draw steps log-uniform in [dt_min, dt_max], at least `floor`, and give what softplus turns into them."""
    spread = math.log(dt_max) - math.log(dt_min)
    step = torch.exp(torch.rand_like(like) * spread + math.log(dt_min)).clamp_min(floor)
    return step + torch.log(-torch.expm1(-step))


def undecayed(value: Tensor) -> nn.Parameter:
    """Make a parameter that asks to be left out of weight decay."""
    parameter = nn.Parameter(value)
    parameter._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue] # what public optimisers look for
    return parameter
