"""The origin's state-space block: linear, time-invariant, 16 real states shared by all channels; no selectivity.

Parameter names are the origin's, so its checkpoints load. B batch, N tokens, e = 2 * width, S states.
"""

from __future__ import annotations

import torch
from ssm_kernels.nn import LayerNorm
from torch import Tensor, nn

from .frontend import feed_forward

LARGEST = 10.0  # bound of the rate and of the state
CHUNK = 256  # tokens whose decays are a dense table at once


class LegacyScan(nn.Module):
    """h[n] = Abar h[n-1] + Bbar (B u[n]), output C h[n] + D u[n], gated against the input, normed.

    A step is 1 / N, so the decay over the whole sequence is exp(A) whatever its length, and the share of the sensors in
    the state falls as the number of queries grows. The origin evaluates the recurrence through a table of N x N x S
    decays; here it runs in chunks, with the same result.
    """

    def __init__(self, inner: int, d_state: int, dropout: float) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.randn(d_state) * 0.1 - 1)
        self.B = nn.Linear(inner, d_state, bias=False)
        self.C = nn.Linear(d_state, inner, bias=False)
        self.D = nn.Parameter(torch.randn(inner) * 0.01)
        self.gate = nn.Sequential(nn.Linear(inner, inner), nn.Sigmoid())
        self.norm = LayerNorm(inner)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.B.weight, gain=0.5)
        nn.init.xavier_uniform_(self.C.weight, gain=0.5)

    def forward(self, u: Tensor) -> Tensor:
        """(B, N, e) to (B, N, e)."""
        rate = -self.A_log.exp().clamp(1e-8, LARGEST)
        decay = rate / u.shape[1]  # log of Abar
        gain = (decay.exp() - 1) / (rate + 1e-8)
        state = running_sum(self.B(u) * gain, decay).clamp(-LARGEST, LARGEST)
        output = self.C(state) + self.D * u
        gate = self.gate(u)
        return self.dropout(self.norm(gate * output + (1 - gate) * u))


def running_sum(drive: Tensor, decay: Tensor) -> Tensor:
    """Return h with h[n] = exp(decay) * h[n-1] + drive[n] along axis 1: drive (B, N, S), decay (S,) <= 0."""
    outputs, carried = [], drive.new_zeros(drive.shape[0], drive.shape[2])
    for chunk in drive.split(CHUNK, 1):
        n = torch.arange(chunk.shape[1], device=drive.device)
        age = n[:, None] - n
        weights = (age[..., None] * decay).exp() * (age >= 0)[..., None]  # (n, m, S)
        inside = torch.einsum("nms,bms->bns", weights.to(chunk.dtype), chunk)
        h = inside + carried[:, None] * ((n[:, None] + 1) * decay).exp()
        outputs.append(h)
        carried = h[:, -1]
    return torch.cat(outputs, 1)


class LegacyBlock(nn.Module):
    """x + proj_out(scan(proj_in(x))), then a feed-forward part of ratio 4; no norm before the scan."""

    def __init__(self, width: int, d_state: int, dropout: float) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width, 2 * width)
        self.ssm = LegacyScan(2 * width, d_state, dropout)
        self.proj_out = nn.Linear(2 * width, width)
        self.mlp = feed_forward(width, 4, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to (B, N, width)."""
        x = x + self.proj_out(self.ssm(self.proj_in(x)))
        return x + self.mlp(x)
