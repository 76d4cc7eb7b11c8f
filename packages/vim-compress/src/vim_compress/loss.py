"""The objective: cross-entropy with soft targets, and the imitation of a teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def classification_loss(
    logits: Tensor, target: Tensor, taught: Tensor | None = None, *, weight: float = 0.5, temperature: float = 2.0
) -> Tensor:
    """Return the mean loss of a batch, a scalar in float32.

    (1 - weight) times the cross-entropy with the targets plus weight * T^2 times the Kullback-Leibler divergence from
    the teacher's outputs softened by T; the cross-entropy alone without a teacher.

    Args:
        logits: (B, K).
        target: (B, K), non-negative, sums of 1.
        taught: The teacher's logits, (B, K).
        weight: Share of the teacher, in [0, 1].
        temperature: T.

    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    logits = logits.float()
    plain = -(target * F.log_softmax(logits, -1)).sum(-1).mean()
    if taught is None:
        return plain
    return (1 - weight) * plain + weight * temperature**2 * divergence(logits, taught, temperature)


def divergence(logits: Tensor, taught: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean Kullback-Leibler divergence of outputs (B, K) from a teacher's, both softened, in float32."""
    soft = F.log_softmax(logits.float() / temperature, -1)
    softer = F.log_softmax(taught.float() / temperature, -1)
    return torch.sum(softer.exp() * (softer - soft), -1).mean()
