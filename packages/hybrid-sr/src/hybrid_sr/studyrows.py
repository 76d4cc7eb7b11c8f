"""What the light study compares: the published light networks, then one change at a time. Imports no torch.

Widths are 54 channels where nothing else is said. Rows of other depths widen their feed-forward parts until parameters
are equal, so that a ratio is not confounded with size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches

from .config import (
    ModelConfig,
    contrast_baseline,
    contrast_gcffn,
    contrast_no_pe,
    contrast_no_pe_no_cab,
    hat_light,
    mamba,
)

BASE = "contrast-no-pe-no-cab"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network of the study.

    Attributes:
        name: Of the row.
        config: Its network for a scale.
        question: What it is there for.
    """

    name: str
    config: Callable[[int], ModelConfig]
    question: str


def _changed(**fields: object) -> Callable[[int], ModelConfig]:
    return lambda scale: replace(contrast_no_pe_no_cab(scale), **fields)  # pyright: ignore[reportArgumentType]


ROWS = (
    Row(name="mamba", config=mamba, question="scans only"),
    Row(name="contrast-baseline", config=contrast_baseline, question="hybrid with CAB and position bias"),
    Row(name="contrast-no-pe", config=contrast_no_pe, question="without position bias"),
    Row(name=BASE, config=contrast_no_pe_no_cab, question="without CAB, reinvested; 6 scans to 1 attention; the base"),
    Row(name="hat-light", config=hat_light, question="attention only"),
    Row(name="dwconv-ffn", config=_changed(ffn="dwconv"), question="base + depthwise convolution in the FFN"),
    Row(
        name="gcffn-matched",
        config=_changed(ffn="gated-conv", mlp_ratio=68 / 54),
        question="base + GCFFN of the base's size, final norm kept",
    ),
    Row(name="gcffn-published", config=contrast_gcffn, question="GCFFN as published: 26 % larger, no final norm"),
    Row(name="no-final-norm", config=_changed(final_norm=False), question="base without final norm"),
    Row(
        name="residual-0.2",
        config=_changed(final_norm=False, residual_scale=0.2),
        question="base without final norm, groups times 0.2 (DRCT)",
    ),
    Row(name="mlp-3", config=_changed(mlp_ratio=3.0), question="a larger FFN"),
    Row(name="geglu-2", config=_changed(ffn="geglu"), question="a gated FFN of that size"),
    Row(
        name="ratio-3-1",
        config=_changed(depths=(3,) * 6, mlp_ratio=118 / 54),
        question="3 scans to 1 attention, parameters equal",
    ),
    Row(
        name="ratio-5-1",
        config=_changed(depths=(5,) * 4, mlp_ratio=141 / 54),
        question="5 scans to 1 attention, parameters equal",
    ),
    Row(
        name="ratio-8-1",
        config=_changed(depths=(8,) * 3, mlp_ratio=125 / 54),
        question="8 scans to 1 attention, parameters equal",
    ),
    Row(name="ssd", config=_changed(mixer="ssd", d_state=4), question="base with the recurrence of Mamba-2"),
    Row(name="clipped-softmax", config=_changed(softmax_clip=0.5), question="dropped idea: clipped softmax"),
    Row(name="multi-query", config=_changed(multi_query=True), question="dropped idea: one head of keys and values"),
    Row(name="window-scan", config=_changed(scan_window=16), question="dropped idea: scans inside windows"),
    Row(name="registers", config=_changed(registers=4), question="dropped idea: 4 registers in the attention"),
)


def find_rows(names: str) -> list[Row]:
    """Return the rows of a comma-separated list, or all of them for "all".

    Raises:
        ValueError: A name is none.
    """
    if names == "all":
        return list(ROWS)
    known = {row.name: row for row in ROWS}
    chosen = []
    for name in (part.strip() for part in names.split(",")):
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"--rows: must be some of {', '.join(known)}, got {name}; {hint}all takes every one")
        chosen.append(known[name])
    return chosen
