"""Which layers a caller wants to see, counted as timm's models count them."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import refuse


def feature_take_indices(layers: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Return the layers asked for, and the last of them.

    Args:
        layers: How many there are.
        indices: A number takes that many of the last ones; a list names them, from the end if negative; None is all.

    Raises:
        ValueError: There is no such layer.
    """
    if indices is None:
        taken = list(range(layers))
    elif isinstance(indices, int):
        taken = list(range(layers))[-indices:] if 0 < indices <= layers else []
    else:
        taken = [i + layers if i < 0 else i for i in indices]
    if not taken or not all(0 <= i < layers for i in taken):
        refuse("forward_intermediates", "indices", f"of {layers} layers", indices, f"give numbers below {layers}")
    return taken, max(taken)
