"""mamba-ssm's Mamba-2 scan, as in `mamba_ssm.ops.triton.ssd_combined`, on `ssm_kernels.ssd`.

Letters: B batch, L length, H heads, P channels of a head, N state, G groups of heads that share B and C, k taps, S
packed sequences.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.checks import check_shape, refuse
from ..ops.ssd import ssd
from .conv import causal_conv1d_fn
from .gated_norms import rmsnorm_fn, wide
from .packed import from_one_row, in_one_row, last_of_rows, runs

ANY_STEP = (0.0, math.inf)
Scanned = Tensor | tuple[Tensor, ...]


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = ANY_STEP,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Scanned:
    """Scan as mamba-ssm's function of this name.

    Args:
        x: Input, (B, L, H, P), any floating dtype and strides.
        dt: Time step, (B, L, H).
        A: Rate of every head, (H,).
        B: Input weights, (B, L, G, N).
        C: Output weights, (B, L, G, N).
        chunk_size: Accepted; the operator cuts the sequence as it likes, which changes rounding alone.
        D: Weight of x in the output, (H,) or (H, P).
        z: Gate, (B, L, H, P).
        dt_bias: Added to dt, (H,).
        initial_states: State before each row, (B, H, P, N).
        seq_idx: Which sequence a step belongs to, (B, L), integer, its steps side by side: no state passes from one to
            the next. On a GPU it costs a wait.
        cu_seqlens: Bounds of the sequences of the one row, (S + 1,), from 0; steps behind the last one are padding, a
            sequence of their own. Only with `return_varlen_states`, and then in place of `seq_idx`.
        dt_softplus: Pass dt + dt_bias through softplus.
        dt_limit: Bounds of the step after that.
        return_final_states: Also return the state after the last step of each row, (B, H, P, N).
        return_varlen_states: Also return the state after each sequence of `cu_seqlens`, (S, H, P, N).

    Returns:
        (B, L, H, P) in x.dtype, and the states asked for in float32 (float64 for float64 x), all with gradient.

    Raises:
        ValueError: A shape, dtype or device is wrong, or `cu_seqlens` is missing. The message names the argument.
    """
    op = "mamba_chunk_scan_combined"
    if return_varlen_states and cu_seqlens is None:
        refuse(op, "cu_seqlens", "the bounds of the sequences with return_varlen_states", None, "pass [0, ..., L]")
    dt, bias, softplus = _step(dt, dt_bias, bool(dt_softplus), dt_limit)

    def scan(
        x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor | None, state: Tensor | None, bounds: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        options = {"dt_bias": bias, "dt_softplus": softplus, "initial_state": state, "cu_seqlens": bounds}
        return ssd(x, dt, A, B, C, D, z=z, return_final_state=True, **options)

    if return_varlen_states and cu_seqlens is not None:
        bounds = torch.cat([cu_seqlens, cu_seqlens.new_full((1,), x.shape[1])])  # what lies behind is padding
        y, states = scan(x, dt, B, C, z, _first_only(initial_states, bounds), bounds)
        last = torch.where(cu_seqlens[-1] < x.shape[1], states[-1:], states[-2:-1])
        return (y, last, states[:-1]) if return_final_states else (y, states[:-1])
    if seq_idx is None:
        y, last = scan(x, dt, B, C, z, initial_states, None)
    else:
        check_shape(op, "seq_idx", seq_idx, [tuple(x.shape[:2])], "(B, L)", "one number per step")
        bounds, first = runs(seq_idx)
        if initial_states is not None:
            shape = bounds.shape[0] - 1, *initial_states.shape[1:]
            initial_states = initial_states.new_zeros(shape).index_copy(0, first, initial_states)
        x_row, dt_row, B_row, C_row = (in_one_row(t) for t in (x, dt, B, C))
        z_row = None if z is None else in_one_row(z)
        y, states = scan(x_row, dt_row, B_row, C_row, z_row, initial_states, bounds)
        y, last = from_one_row(y, x.shape[0]), states[last_of_rows(first, states.shape[0])]
    return (y, last) if return_final_states else y


def mamba_chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Give `mamba_chunk_scan_combined` without states: (B, L, H, P)."""
    y = mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus=dt_softplus)
    assert isinstance(y, Tensor)
    return y


def ssd_chunk_scan_combined_ref(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Do the same with the loop that defines the scan."""
    return ssd(x, dt, A, B, C, D, z=z, dt_bias=dt_bias, dt_softplus=bool(dt_softplus), impl="reference")


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = ANY_STEP,
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Scanned:
    """Convolve, scan, gate, normalise and project, as mamba-ssm's function of this name.

    Args:
        zxbcdt: What a Mamba-2 block projects its input to, (B, L, 2 M + 2 H P + 2 G N + H): M channels of a gated MLP
            and their gates (usually none), then z, x, B, C and dt.
        conv1d_weight: Filters of x, B and C, (H P + 2 G N, k).
        conv1d_bias: One number for each, or None.
        dt_bias: Added to dt, (H,).
        A: Rate of every head, (H,).
        D: Weight of x in the scan's output, (H,) or (H, P).
        chunk_size: As in `mamba_chunk_scan_combined`, as are the next three.
        initial_states: State before each row.
        seq_idx: Which sequence a step belongs to.
        dt_limit: Bounds of the step.
        return_final_states: Also return the state after the last step.
        activation: Of the convolution: None, "silu" or "swish".
        rmsnorm_weight: Normalise the gated result, G groups apart, with this weight (H P,); None gates alone.
        rmsnorm_eps: Its epsilon.
        outproj_weight: Projection, (out, M + H P), or None.
        outproj_bias: Its bias, (out,), or None.
        headdim: P, where D is (H,).
        ngroups: G.
        norm_before_gate: norm(y) * silu(z), else norm(y * silu(z)).

    Returns:
        (B, L, out), without a projection (B, L, M + H P); with `return_final_states` also the state (B, H, P, N).

    Raises:
        ValueError: A shape, dtype or device is wrong, or `headdim` is missing. The message names the argument.
    """
    op = "mamba_split_conv1d_scan_combined"
    mlp, z, xBC, dt, heads = _split(op, zxbcdt, conv1d_weight, D, headdim, ngroups)
    if outproj_weight is None and outproj_bias is not None:
        refuse(op, "outproj_bias", "None without outproj_weight", "a tensor", "give both")
    xBC = causal_conv1d_fn(xBC.mT, conv1d_weight, conv1d_bias, seq_idx, activation=activation)
    assert isinstance(xBC, Tensor)
    inner = z.shape[-1]
    states = (xBC.shape[1] - inner) // (2 * ngroups)
    x, B, C = xBC.mT.split([inner, ngroups * states, ngroups * states], -1)
    done = mamba_chunk_scan_combined(
        x.unflatten(-1, (heads, -1)),
        dt,
        A,
        B.unflatten(-1, (ngroups, states)),
        C.unflatten(-1, (ngroups, states)),
        chunk_size,
        D,
        z.unflatten(-1, (heads, -1)) if rmsnorm_weight is None else None,
        dt_bias,
        initial_states,
        seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
    )
    y, last = done[0].flatten(-2), done[1]
    if rmsnorm_weight is not None:
        y = rmsnorm_fn(y, rmsnorm_weight, None, z, rmsnorm_eps, inner // ngroups, norm_before_gate)
    if mlp is not None:
        y = torch.cat([gated_mlp(mlp).to(y.dtype), y], dim=-1)
    if outproj_weight is not None:
        y = F.linear(y if torch.is_autocast_enabled() else y.to(outproj_weight.dtype), outproj_weight, outproj_bias)
    return (y, last) if return_final_states else y


def gated_mlp(gates_and_values: Tensor) -> Tensor:
    """Multiply the second half of the channels by the SiLU of the first."""
    gates, values = gates_and_values.chunk(2, -1)
    return F.silu(gates) * values


def _split(
    op: str, zxbcdt: Tensor, conv1d_weight: Tensor, D: Tensor, headdim: int | None, groups: int
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, int]:
    """Cut what was projected: MLP part (None if there is none), z, xBC, dt; and count the heads."""
    if D.dim() == 1 and headdim is None:
        refuse(op, "headdim", "the channels of a head where D is (H,)", None, "give headdim")
    heads = D.shape[0]
    inner = heads * (D.shape[1] if D.dim() == 2 else headdim or 0)
    convolved = conv1d_weight.shape[0]
    mlp = zxbcdt.shape[-1] - inner - convolved - heads
    if convolved <= inner or (convolved - inner) % (2 * groups):
        refuse(op, "conv1d_weight", f"(H P + 2 G N, k) with H P = {inner}", tuple(conv1d_weight.shape), "see headdim")
    if mlp < 0 or mlp % 2:
        wanted = f"(B, L, 2 M + {inner + convolved + heads})"
        refuse(op, "zxbcdt", wanted, tuple(zxbcdt.shape), "it holds z, x, B, C and dt of every step")
    gates_and_values, z, xBC, dt = zxbcdt.split([mlp, inner, convolved, heads], -1)
    return gates_and_values if mlp else None, z, xBC, dt, heads


def _step(
    dt: Tensor, bias: Tensor | None, softplus: bool, limit: tuple[float, float]
) -> tuple[Tensor, Tensor | None, bool]:
    """Finish the step, or leave bias and softplus to the operator where the bounds cannot matter."""
    if softplus and tuple(limit) == ANY_STEP:
        return dt, bias, softplus
    dt = wide(dt) if bias is None else wide(dt) + bias
    return (F.softplus(dt) if softplus else dt).clamp(*limit), None, False


def _first_only(initial_states: Tensor | None, bounds: Tensor) -> Tensor | None:
    """Give the one initial state to the first of the packed sequences, zeros to the others."""
    if initial_states is None:
        return None
    rest = initial_states.new_zeros(bounds.shape[0] - 2, *initial_states.shape[1:])
    return torch.cat([initial_states, rest])
