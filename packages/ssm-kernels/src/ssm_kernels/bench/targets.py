"""How much faster than the others, and how much it must be. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from .rows import Row, align, spell
from .shapes import LM, LONG, SR, SSD_VISION, name_of

Part = Literal["fwd", "bwd", "fwd+bwd", "memory"]
OURS = ("triton", "torch")  # the first that was measured is the one that is compared
CPU_PEER = "reference"
# Who is compared with at each operator; of several the fastest counts. Without a bias there is nothing to beat: fused
# attention is what a bias should not cost more than.
PEERS: dict[str, tuple[str, ...]] = {
    "selective_scan": ("mamba_ssm",),
    "selective_scan_bidirectional": ("mamba_ssm_flip",),
    "selective_scan_2d": ("vmamba_oflex", "mamba_ssm"),
    "depthwise_conv1d": ("torch_eager", "causal_conv1d"),
    "layer_norm": ("torch_autocast", "torch_same"),
    "add_rms_norm": ("torch_autocast", "mamba_ssm"),
    "linear_scan": ("torch_fft",),
    "linear_scan_shared": ("torch_fft",),
    "ssd": ("mamba_ssm",),
    "selective_scan_step": ("mamba_ssm",),
    "ssd_step": ("mamba_ssm",),
    "depthwise_conv1d_step": ("causal_conv1d",),
    "window_attention": ("torch_eager", "torch_sdpa"),
    "window_attention_nobias": ("torch_sdpa_nobias",),
    "sliding_window_attention": ("torch_flex", "torch_sdpa"),
    "Mamba": ("mamba_ssm",),
    "BidirectionalMamba": ("mamba_ssm_flip",),
    "SS2D": ("mamba_ssm",),
}
CPU_TARGET = (2, 192, 1024, 16)


@dataclass(frozen=True)
class Comparison:
    """Ours against the fastest of the others at one size: times in milliseconds, or bytes for memory."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    part: Part
    impl: str
    ours: float
    peer: str
    source: str
    theirs: float
    must: float | None

    @property
    def ratio(self) -> float:
        """Their figure over ours: above 1 we are faster, or need less."""
        return self.theirs / self.ours if self.ours else float("inf")

    @property
    def verdict(self) -> str:
        """Say whether the target is met; empty where there is none."""
        return "" if self.must is None else "met" if self.ratio >= self.must else "missed"


def must(op: str, shape: tuple[int, ...], part: Part, peer: str) -> float | None:
    """Return the smallest ratio that will do (in bfloat16 on a GPU), None where nothing was asked for."""
    if peer == CPU_PEER:
        asked = {"fwd": 2.5, "fwd+bwd": 5.0} if (op, shape) == ("selective_scan", CPU_TARGET) else {}
        return asked.get(part)
    scan = 1.0 if shape in (LM, LONG, SR) else 1.5
    vision = shape in SSD_VISION
    asked = {
        "selective_scan": {"fwd": scan, "bwd": 1.2, "memory": 1.0},
        "selective_scan_bidirectional": {"fwd": 2.5, "bwd": 2.5, "memory": 1.0},
        "selective_scan_2d": {"fwd": 2.5, "bwd": 1.5, "memory": 1.0},
        "ssd": {"fwd": 2.0 if vision else 1.0, "bwd": 4.0 if vision else 1.0, "memory": 1.0},
        "window_attention": {"fwd": 2.0, "bwd": 1.5, "memory": 1.0},
    }
    return asked.get(op, {}).get(part)


def compare(rows: Iterable[Row]) -> Iterator[Comparison]:
    """Compare ours with the others at every operator, size and dtype that has both.

    A peer that ran is taken rather than an earlier measurement of the same peer; among peers the fastest counts, for
    the forward, the backward pass and the memory each.
    """
    groups: dict[tuple[str, tuple[int, ...], str], dict[str, Row]] = {}
    for row in rows:
        kept = groups.setdefault((row.op, row.shape, row.dtype), {})
        if row.fwd_ms is not None and not (row.source == "table" and row.impl in kept):
            kept[row.impl] = row
    ops = list(dict.fromkeys(op for op, _, _ in groups))
    for (op, shape, dtype), found in sorted(groups.items(), key=lambda item: ops.index(item[0][0])):
        ours = next((found[impl] for impl in OURS if impl in found), None)
        named = (*PEERS.get(op, ()), CPU_PEER) if ours is not None and ours.impl == "torch" else PEERS.get(op, ())
        peers = [found[impl] for impl in named if impl in found]
        if ours is None:
            continue
        for part in ("fwd", "bwd", "fwd+bwd", "memory"):
            values = [(value, peer) for peer in peers if (value := _value(peer, part)) is not None]
            own = _value(ours, part)
            if own is None or not values:
                continue
            value, peer = min(values, key=lambda pair: pair[0])
            wanted = must(op, shape, part, peer.impl) if peer.impl == CPU_PEER or dtype == "bfloat16" else None
            yield Comparison(op, shape, dtype, part, ours.impl, own, peer.impl, peer.source, value, wanted)


def _value(row: Row, part: Part) -> float | None:
    if part == "memory":
        return row.peak_bytes
    if part == "fwd+bwd":
        return None if row.fwd_ms is None or row.bwd_ms is None else row.fwd_ms + row.bwd_ms
    return row.fwd_ms if part == "fwd" else row.bwd_ms


HEAD: tuple[str, ...] = (
    *("op", "model", "shape", "dtype", "what", "ours", "", "peer", "", "source"),
    *("peer/ours", "must", ""),
)


def comparison_lines(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Return a head and one line of cells per comparison; milliseconds, or MiB for memory."""
    lines = [HEAD]
    for c in comparisons:
        memory = c.part == "memory"
        ours, theirs = (f"{x / 2**20:.1f} MiB" if memory else f"{x:.3f} ms" for x in (c.ours, c.theirs))
        shape = "x".join(map(str, c.shape))
        wanted = spell(c.must, ".1f")
        kept = (c.op, name_of(c.op, c.shape), shape, c.dtype, c.part, c.impl, ours, c.peer, theirs, c.source)
        lines.append((*kept, f"{c.ratio:.2f}", wanted, c.verdict))
    return lines


def as_text(comparisons: Sequence[Comparison]) -> str:
    """Lay the comparisons out in columns; empty if there are none."""
    return align(comparison_lines(comparisons)) if comparisons else ""


def summary(comparisons: Sequence[Comparison]) -> str:
    """Count the targets that are met and missed."""
    count = {verdict: sum(c.verdict == verdict for c in comparisons) for verdict in ("met", "missed")}
    return f"Targets: {count['met']} met, {count['missed']} missed." if any(count.values()) else "No targets here."


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """Lay the comparisons out as a Markdown table: one line a size, with the parts side by side."""
    parts: tuple[Part, ...] = ("fwd", "bwd", "memory")
    lines = [
        "| operator | model | shape | dtype | peer | fwd: peer / ours ms | ratio (must) | bwd: peer / ours ms "
        "| ratio (must) | peak: peer / ours MiB | ratio (must) |",
        "|" + "---|" * 11,
    ]
    sizes = dict.fromkeys((c.op, c.shape, c.dtype) for c in comparisons)
    for op, shape, dtype in sizes:
        here = {c.part: c for c in comparisons if (c.op, c.shape, c.dtype) == (op, shape, dtype)}
        peers = dict.fromkeys(f"{here[p].peer}{' (table)' * (here[p].source == 'table')}" for p in parts if p in here)
        cells = [op, name_of(op, shape), "x".join(map(str, shape)), dtype, ", ".join(peers)]
        for part in parts:
            cells += _markdown_cells(here.get(part))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_missed(comparisons: Sequence[Comparison]) -> str:
    """Lay the targets that are not met out as a Markdown table, with how much is missing."""
    missed = [c for c in comparisons if c.verdict == "missed"]
    if not missed:
        return "Every target is met."
    lines = ["| operator | model | what | peer | peer / ours | ratio | must | short by |", "|" + "---|" * 8]
    for c in missed:
        scale, form, unit = (2**20, ".0f", "MiB") if c.part == "memory" else (1, ".3f", "ms")
        figures = f"{c.theirs / scale:{form}} / {c.ours / scale:{form}} {unit}"
        peer = c.peer + " (table)" * (c.source == "table")
        kept = (c.op, name_of(c.op, c.shape), c.part, peer, figures, f"{c.ratio:.2f}", f"{c.must:g}")
        lines.append("| " + " | ".join((*kept, f"{1 - c.ratio / (c.must or 1):.0%}")) + " |")
    return "\n".join(lines)


def _markdown_cells(c: Comparison | None) -> list[str]:
    if c is None:
        return ["-", "-"]
    scale, form = (2**20, ".0f") if c.part == "memory" else (1, ".3f")
    wanted = "" if c.must is None else f" ({c.must:g})"
    ratio = f"{c.ratio:.2f}{wanted}"
    return [f"{c.theirs / scale:{form}} / {c.ours / scale:{form}}", f"**{ratio}**" if c.verdict == "missed" else ratio]
