"""Which parameters must not decay towards zero: rates, skip weights, steps, gates, layer scales, positions."""

from __future__ import annotations

from torch import nn

EMBEDDINGS = frozenset({"cls_token", "pos_embed"})
PREFIXES = ("A_log", "A_b_log", "D", "D_b", "dt_bias", "gate", "gamma", "log_step", "log_A_real", "A_imag")
COMPLEX = ("_real", "_imag")


def undecayed(model: nn.Module) -> set[str]:
    """Return the names of those parameters of a network."""
    found = set()
    for name, _ in model.named_parameters():
        last = name.rpartition(".")[2]
        if name in EMBEDDINGS or last in PREFIXES or last.startswith(("gate_", "gamma_")) or last.endswith(COMPLEX):
            found.add(name)
    return found
