"""What a velocity is conditioned on: sensors, places of the queries, and what is computed of them once per field.

B fields, Ni sensors, Nq queries, C channels, d axes, K neighbours, A anchors. Values are those the network sees.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Condition(NamedTuple):
    """Tensors of one batch of fields; `SparseField.prepare` makes them. A field is base + spread * z.

    Attributes:
        input_coords: (B, Ni, d) in [0, 1].
        input_values: (B, Ni, C), standardised.
        query_coords: (B, Nq, d) in [0, 1].
        base: (B, Nq, C) what the flow starts from: kriging of the sensors, or 0.
        spread: (B, Nq, C) unit of the flow at every query: kriging's standard deviation, or 1.
        input_order: (B, Ni) along the curve, or None.
        query_order: (B, Nq) along the curve, or None.
        doubt: (B, Nq, C) second kriging minus the first, in units of the spread; 0 if there is one.
        surprise: (B, Ni, C) every sensor against kriging of its neighbours, in standard deviations.
        centre: (B, 1, C) mean of the sensors.
        scale: (B, 1, C) their standard deviation.
        near_input: (B, Ni, K) which other sensors are nearest to a sensor.
        near: (B, Nq, K) which sensors are nearest to a query.
        anchor: (B, A) which queries all others see.
        near_anchor: (B, Nq, Ka) which of them are nearest to a query.
        context_order: (B, Ni + A) sensors and anchors along the curve.
    """

    input_coords: Tensor
    input_values: Tensor
    query_coords: Tensor
    base: Tensor
    spread: Tensor
    input_order: Tensor | None = None
    query_order: Tensor | None = None
    doubt: Tensor | None = None
    surprise: Tensor | None = None
    centre: Tensor | None = None
    scale: Tensor | None = None
    near_input: Tensor | None = None
    near: Tensor | None = None
    anchor: Tensor | None = None
    near_anchor: Tensor | None = None
    context_order: Tensor | None = None

    def repeat(self, samples: int) -> Condition:
        """Repeat every field `samples` times, next to each other; a single field takes no more memory."""
        if self.input_coords.shape[0] == 1:
            return Condition._make(None if x is None else x.expand(samples, *x.shape[1:]) for x in self)
        return Condition._make(None if x is None else x.repeat_interleave(samples, 0) for x in self)

    def fields(self, part: slice) -> Condition:
        """Keep some of the fields."""
        return Condition._make(None if x is None else x[part] for x in self)

    def queries(self, start: int, stop: int) -> Condition:
        """Keep the queries start..stop; sensors and anchors stay (for networks that decode queries one by one)."""
        part = slice(start, stop)
        return self._replace(
            query_coords=self.query_coords[:, part],
            base=self.base[:, part],
            spread=self.spread[:, part],
            doubt=None if self.doubt is None else self.doubt[:, part],
            near=None if self.near is None else self.near[:, part],
            near_anchor=None if self.near_anchor is None else self.near_anchor[:, part],
        )
