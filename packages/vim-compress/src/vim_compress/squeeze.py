"""Squeeze-and-excitation for tokens (B, L, C): channels are scaled by what their mean over the tokens asks for."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SqueezeTokens(nn.Module):
    """Scale each channel by sigmoid(expand(relu(squeeze(mean over the tokens)))).

    No biases, so it costs 2 * dim^2 / ratio parameters.

    Args:
        dim: Channels C.
        ratio: C over the squeezed width, which is at least 1.

    Source: Hu et al. 2017, arXiv:1709.01507, section 3.
    """

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        squeezed = max(1, dim // ratio)
        self.squeeze = nn.Linear(dim, squeezed, bias=False)
        self.expand = nn.Linear(squeezed, dim, bias=False)

    def forward(self, x: Tensor, skip: int | None = None) -> Tensor:
        """Scale (B, L, C); the token at index `skip` is left out of the mean, but scaled like the others."""
        mean = x.mean(1)
        if skip is not None and x.shape[1] > 1:
            mean = (mean * x.shape[1] - x[:, skip]) / (x.shape[1] - 1)
        factor = torch.sigmoid(self.expand(torch.relu(self.squeeze(mean))))
        return x * factor.unsqueeze(1)
