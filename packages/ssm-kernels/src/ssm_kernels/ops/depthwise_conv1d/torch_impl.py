"""The depthwise convolution as one pass over sequences with a gap of k - 1 steps between them.

Letters: B batch, L length, D channels, k taps, S packed sequences. All sequences are laid out in one padded buffer, so
that packing, padding, direction and state are only a matter of where things lie; the filter itself runs over the
buffer without any case.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 256  # steps whose products are summed at a time on the CPU: the temporary stays in the cache


class _Layout:
    """Where the steps of the sequences and the states lie in the padded buffer."""

    def __init__(self, x: Tensor, taps: int, cu_seqlens: Tensor | None, padding: str, reverse: bool):
        self.batch, self.length, self.channels = x.shape
        self.taps, self.reverse = taps, reverse
        self.lead = taps - 1 if padding == "causal" else (taps - 1) // 2
        if reverse:
            self.lead = taps - 1 - self.lead
        self.steps = self.states = None
        self.size = self.length + taps - 1
        if cu_seqlens is not None:
            bounds = cu_seqlens.long()
            sequences = bounds.shape[0] - 1
            self.size = self.length + sequences * (taps - 1)
            row = torch.arange(self.length, device=x.device)
            self.steps = row + (torch.searchsorted(bounds, row, right=True) - 1) * (taps - 1)
            gaps = (bounds[1:] if reverse else bounds[:-1]) + torch.arange(sequences, device=x.device) * (taps - 1)
            self.states = (gaps[:, None] + torch.arange(taps - 1, device=x.device)).flatten()

    def filter(self, weight: Tensor) -> Tensor:
        """Order the taps as they meet the buffer, (k, D)."""
        return (weight.flip(1) if self.reverse else weight).T.contiguous()

    def spread(self, x: Tensor, state: Tensor | None) -> Tensor:
        """Put steps and states into the buffer, (B, size, D); what is neither is zero."""
        gap = None
        if state is not None:
            gap = (state.flip(2) if self.reverse else state).mT  # (B or S, k - 1, D)
        if self.steps is not None and self.states is not None:
            buffer = x.new_zeros(1, self.size, self.channels).index_copy_(1, self.steps + self.lead, x)
            return buffer if gap is None else buffer.index_copy_(1, self.states, gap.reshape(1, -1, self.channels))
        if gap is not None:
            return torch.cat([x, gap] if self.reverse else [gap, x], 1)
        return F.pad(x, (0, 0, self.lead, self.taps - 1 - self.lead))

    def collect(self, y: Tensor) -> Tensor:
        """Take the results that belong to a step out of all that the filter made."""
        return y if self.steps is None else y.index_select(1, self.steps)

    def spread_grad(self, grad: Tensor) -> Tensor:
        """Put the gradients of the results where the filter made them: the adjoint of `collect`."""
        if self.steps is None:
            return grad
        return grad.new_zeros(1, self.size - self.taps + 1, self.channels).index_copy_(1, self.steps, grad)

    def collect_grad(self, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """Take the gradients of steps and states out of that of the buffer: the adjoint of `spread`."""
        if self.steps is not None and self.states is not None:
            x = buffer.index_select(1, self.steps + self.lead)
            gap = buffer.index_select(1, self.states).view(-1, self.taps - 1, self.channels)
        else:
            x = buffer[:, self.lead : self.lead + self.length]
            gap = buffer[:, self.length :] if self.reverse else buffer[:, : self.taps - 1]
        return x, (gap.flip(1) if self.reverse else gap).mT


def _filter(buffer: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """Sum taps[j] * buffer[:, m + j] over j: (B, M, D) to (B, M - k + 1, D)."""
    if buffer.device.type == "cpu" and buffer.dtype == torch.float32:
        # a picture of height 1 in channels-last order, which the CPU's convolution takes as it lies
        picture, kernel = buffer[:, None].permute(0, 3, 1, 2), taps.T[:, None, None]
        return F.conv2d(picture, kernel, bias, groups=buffer.shape[2]).permute(0, 2, 3, 1)[:, 0]
    length = buffer.shape[1] - taps.shape[0] + 1
    y = buffer[:, :length] * taps[0] if bias is None else torch.addcmul(bias, buffer[:, :length], taps[0])
    for j in range(1, taps.shape[0]):
        y.addcmul_(buffer[:, j : j + length], taps[j])
    return y


def _filter_gradient(buffer: Tensor, grad: Tensor, taps: int) -> Tensor:
    """Sum buffer[:, m + j] * grad[:, m] over images and steps, (k, D)."""
    length = grad.shape[1]
    if grad.device.type != "cpu":
        return torch.stack([(buffer[:, j : j + length] * grad).sum((0, 1)) for j in range(taps)])
    total = buffer.new_zeros(taps, buffer.shape[2])
    for image, image_grad in zip(buffer, grad, strict=True):
        for start in range(0, length, ROWS):
            part = image_grad[start : start + ROWS]
            for j in range(taps):
                total[j] += (image[start + j : start + j + part.shape[0]] * part).sum(0)
    return total


def depthwise_conv1d_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    padding: str,
    reverse: bool,
    activation: str | None,
) -> Tensor:
    """Lay the sequences out, filter, take the steps."""
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    layout = _Layout(x, weight.shape[1], cu_seqlens, padding, reverse)
    state = None if initial_state is None else initial_state.to(wide)
    buffer = layout.spread(x.to(wide), state)
    y = layout.collect(_filter(buffer, layout.filter(weight.to(wide)), None if bias is None else bias.to(wide)))
    return (y if activation is None else F.silu(y, inplace=True)).to(x.dtype).contiguous()


def depthwise_conv1d_backward_torch(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    padding: str,
    reverse: bool,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute all gradients; those of a missing bias or state are empty tensors."""
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    layout = _Layout(x, weight.shape[1], cu_seqlens, padding, reverse)
    state = None if initial_state is None else initial_state.to(wide)
    buffer = layout.spread(x.to(wide), state)
    taps = layout.filter(weight.to(wide))
    grad = grad.to(wide)
    if activation is not None:
        before = layout.collect(_filter(buffer, taps, None if bias is None else bias.to(wide)))
        grad = torch.ops.aten.silu_backward(grad, before)
    spread = layout.spread_grad(grad)
    grad_taps = _filter_gradient(buffer, spread, layout.taps)
    around = layout.taps - 1
    grad_x, grad_state = layout.collect_grad(_filter(F.pad(spread, (0, 0, around, around)), taps.flip(0), None))
    grad_weight = grad_taps.T.flip(1) if reverse else grad_taps.T
    return (
        grad_x.to(x.dtype).contiguous(),
        grad_weight.to(weight.dtype).contiguous(),
        x.new_empty(0) if bias is None else grad.sum((0, 1)).to(bias.dtype),
        x.new_empty(0) if initial_state is None else grad_state.to(initial_state.dtype).contiguous(),
    )
