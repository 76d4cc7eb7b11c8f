"""Attention, feed-forward parts and the text as blocks see it. B batch, L image tokens, T text tokens, d width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ssm_kernels.nn import LayerNorm
from torch import Tensor, nn
from torch.nn import functional as F

from .pretrained import exact

ATTENTION_SCALE = 8.0  # of the logits between unit vectors
SHRINK = 0.01  # of the spectrum in EinFFT


@dataclass(frozen=True)
class Text:
    """What blocks get of the text.

    Attributes:
        states: (B, T, d), tokens at the end, zeros before them: a scan from the left then starts with nothing.
        mask: (B, T) bool, True for tokens. A row without text has its learned null token, or none.
        keys: (B, T) bool, what attention may see: nothing in rows without text.
        pooled: Mean of the tokens, (B, d).
    """

    states: Tensor
    mask: Tensor
    keys: Tensor
    pooled: Tensor


def left_pad(text: Tensor, mask: Tensor, length: int | None) -> tuple[Tensor, Tensor]:
    """Move tokens to the end of their rows, keeping their order.

    Args:
        text: (B, T, C).
        mask: (B, T) bool, True for tokens, wherever they are.
        length: Tokens of the result; the first ones are kept where there are more. None keeps T.

    Returns:
        text (B, length, C), zero at pads, and its mask (B, length).
    """
    length = text.shape[1] if length is None else length
    kept = mask & (mask.cumsum(1) <= length)
    places = torch.arange(text.shape[1], device=mask.device)
    keys = kept.int() * text.shape[1] + places  # all different, as a stable sort would be: that has no ONNX form
    order = keys.topk(text.shape[1], dim=1, largest=False).indices
    text = torch.where(kept[..., None], text, 0.0).gather(1, order[..., None].expand_as(text))
    kept = kept.gather(1, order)
    missing = length - text.shape[1]
    if missing > 0:
        return F.pad(text, (0, 0, missing, 0)), F.pad(kept, (missing, 0))
    return text[:, -length:], kept[:, -length:]


def norm(dim: int) -> LayerNorm:
    """Layer normalisation without a bias."""
    return LayerNorm(dim, bias=False)


class Attention(nn.Module):
    """Attention between unit vectors with learned scales, and a learned key that can always be looked at.

    Args:
        dim: Width d.
        heads: Heads.
        dim_head: Channels of each.
        zero: Start with an output of zero.
        normalise: Normalise the queries' input first.

    Source: Muse's attention as in the widely used open implementation (query-key normalisation of arXiv:2010.04245).
    """

    def __init__(self, dim: int, heads: int, dim_head: int, *, zero: bool = False, normalise: bool = True) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.norm = norm(dim) if normalise else nn.Identity()
        self.null_kv = nn.Parameter(torch.randn(2, heads, 1, dim_head))
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.q_scale, self.k_scale = nn.Parameter(torch.ones(dim_head)), nn.Parameter(torch.ones(dim_head))
        self.to_out = nn.Linear(inner, dim, bias=False)
        if zero:
            nn.init.zeros_(self.to_out.weight)

    def forward(self, x: Tensor, context: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: Queries, (B, L, d).
            context: Keys and values, (B, T, d); None attends to x.
            keys: (B, T) bool, True for what may be seen. The learned key always may.

        Returns:
            (B, L, d).
        """
        x = self.norm(x)
        source = x if context is None else context
        q = self._split(self.to_q(x))
        k, v = (self._split(part) for part in self.to_kv(source).chunk(2, -1))
        null_k, null_v = (part.to(k.dtype).expand(x.shape[0], -1, -1, -1) for part in self.null_kv)
        k, v = torch.cat([null_k, k], 2), torch.cat([null_v, v], 2)
        q = F.normalize(q.float(), dim=-1) * self.q_scale
        k = F.normalize(k.float(), dim=-1) * self.k_scale
        mask = None if keys is None else F.pad(keys, (1, 0), value=True)[:, None, None]
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask, scale=ATTENTION_SCALE)
        return self.to_out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Normalise, widen, gate by GELU, normalise, narrow."""

    def __init__(self, dim: int, mult: float) -> None:
        super().__init__()
        inner = int(dim * mult * 2 / 3)
        self.norm = norm(dim)
        self.widen = nn.Linear(dim, 2 * inner, bias=False)
        self.inner_norm = norm(inner)
        self.narrow = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, d) to (B, L, d)."""
        value, gate = self.widen(self.norm(x)).chunk(2, -1)
        return self.narrow(self.inner_norm(value * F.gelu(gate)))


class EinFFT(nn.Module):
    """Channel mixing in the spectrum of the sequence: two complex layers on blocks of channels.

    Source: SiMBA, arXiv:2403.15360, section 3.2. It sees all positions at once.
    """

    def __init__(self, dim: int, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = blocks
        size = dim // blocks
        self.norm = norm(dim)
        self.weight = nn.Parameter(torch.randn(2, 2, blocks, size, size) * 0.02)  # layer, real and imaginary part
        self.shift = nn.Parameter(torch.randn(2, 2, blocks, size) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, d) to (B, L, d); float32 inside."""
        with exact(x):
            y = self.norm(x.float()).unflatten(-1, (self.blocks, -1))
            y = torch.view_as_real(torch.fft.fft(y, dim=1, norm="ortho"))
            real, imaginary = y.unbind(-1)
            for layer in range(2):
                (a, b), (p, q) = self.weight[layer].float(), self.shift[layer].float()
                new = torch.einsum("blgi,gij->blgj", real, a) - torch.einsum("blgi,gij->blgj", imaginary, b) + p
                imaginary = torch.einsum("blgi,gij->blgj", real, b) + torch.einsum("blgi,gij->blgj", imaginary, a) + q
                real = new
                if layer == 0:
                    real, imaginary = F.relu(real), F.relu(imaginary)
            spectrum = torch.complex(F.softshrink(real, SHRINK), F.softshrink(imaginary, SHRINK))
            return torch.fft.ifft(spectrum, dim=1, norm="ortho").real.flatten(2).to(x.dtype)
