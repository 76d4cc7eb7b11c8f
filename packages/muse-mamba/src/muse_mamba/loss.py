"""What the token model is trained for: the hidden tokens, and, where a method has them, critics that know mistakes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .data import Batch
from .decoding import critic_logits
from .model import Predicted, TokenModel
from .recipes import TrainConfig

LEFT_OUT = -100  # in place of the id of a token that is not predicted


def token_loss(network: torch.nn.Module, plain: TokenModel, batch: Batch, cfg: TrainConfig) -> Tensor:
    """Return the loss of a micro-batch, a scalar: its mean over micro-steps and processes is that of the whole step.

    The cross entropy is summed over hidden tokens and divided by those of the whole step, so that a step does not
    depend on how it is divided.

    Args:
        network: The model, wrapped for processes and precision.
        plain: The model itself.
        batch: On the device; ids int64, text in float32.
        cfg: Weights of the parts.
    """
    ids, masked, cond = batch["ids"], batch["masked"], batch.get("cond")
    told = batch["text"], batch["mask"]
    hidden = torch.where(masked, cfg.model.vocab, ids)
    previous = None
    if cfg.model.self_conditioning and cfg.self_condition:
        with torch.no_grad():
            first = network(hidden, *told, drop=batch["drop"], cond_ids=cond).states
        previous = first * batch["again"][:, None, None]
    predicted = network(hidden, *told, drop=batch["drop"], cond_ids=cond, previous=previous)
    parts = cfg.micro_steps * cfg.processes / batch["total"]
    truth = torch.where(masked, ids, LEFT_OUT)
    loss = parts * cross_entropy(predicted.logits, truth, cfg.label_smoothing)
    if predicted.judged:
        loss = loss + parts * _layer_critics(plain, predicted, truth, cfg)
    if plain.critic is not None:
        loss = loss + cfg.critic_weight * _token_critic(plain, predicted, hidden, batch)
    return loss


def cross_entropy(logits: Tensor, ids: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the sum of the cross entropies in nats of logits (..., V), float32.

    Args:
        logits: (..., V).
        ids: (...) int64; what is LEFT_OUT does not count. Selecting rows instead would wait for the device.
        smoothing: Share of probability spread over all codes.
    """
    flat = logits.float().flatten(0, -2)
    return F.cross_entropy(flat, ids.flatten(), ignore_index=LEFT_OUT, reduction="sum", label_smoothing=smoothing)


def _layer_critics(plain: TokenModel, predicted: Predicted, truth: Tensor, cfg: TrainConfig) -> Tensor:
    """Sum over hidden tokens, mean over layers: the critics' errors, and the early predictions' cross entropy."""
    total = predicted.logits.new_zeros(())
    counted = (truth != LEFT_OUT).float()
    for layer in predicted.judged:
        early = plain.early_logits(layer.states)
        right = (early.argmax(-1) == truth).float()
        judged = F.binary_cross_entropy_with_logits(layer.logits.float(), right, counted, reduction="sum")
        total = total + cfg.layer_critic_weight * judged + cfg.early_weight * cross_entropy(early, truth)
    return total / len(predicted.judged)


def _token_critic(plain: TokenModel, predicted: Predicted, hidden: Tensor, batch: Batch) -> Tensor:
    """Mean error of the critic about which tokens of a sample at a random temperature are wrong."""
    with torch.no_grad():
        temperature = torch.rand((), device=hidden.device).clamp_min(1e-2)
        noise = -(-torch.rand_like(predicted.logits, dtype=torch.float32).clamp_min(1e-20).log()).clamp_min(1e-20).log()
        drawn = (predicted.logits.float() / temperature + noise).argmax(-1)
        filled = torch.where(batch["masked"], drawn, batch["ids"])
        wrong = (filled != batch["ids"]).float()
    logits = critic_logits(plain, filled, batch["text"], batch["mask"], batch.get("cond"), batch["drop"])
    return F.binary_cross_entropy_with_logits(logits.float(), wrong)


def relative(nats: float, codes: int) -> float:
    """Return a loss as a share of ln V, what guessing costs."""
    return nats / math.log(codes)
