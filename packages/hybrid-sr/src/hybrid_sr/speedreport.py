"""The figures of `hybrid_sr.speed` as Markdown tables. `python -m hybrid_sr.speedreport FILE`; imports no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LABELS = ("hybrid", "hybrid with CAB", "HAT-light fused", "HAT-light eager attention", "HAT-light eager")
REFERENCE = "HAT-light eager"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of a file."""
    (file,) = sys.argv[1:] if argv is None else argv
    print("\n".join(tables(json.loads(Path(file).read_text())).values()))
    return 0


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables by name: "networks", "4K", "attention". What was not measured or failed is left out."""
    good = {name: value for name, value in results.items() if isinstance(value, dict) and "error" not in value}
    return {"networks": _networks(good), "4K": _upscaling(good), "attention": _attention(good)}


def _networks(results: Mapping[str, Any]) -> str:
    head = (
        "mode",
        "network",
        "training, ms",
        "crops/s",
        "to eager HAT-light",
        "memory, GB",
        "inference, ms",
        "MP/s",
        "to eager HAT-light",
        "memory, GB",
    )
    rows = []
    for mode in ("eager", "graph", "compile"):
        reference = results.get(f"{mode}: {REFERENCE}") or results.get(f"eager: {REFERENCE}")
        for label in LABELS:
            found = results.get(f"{mode}: {label}")
            if found is None:
                continue
            cells = [mode, label]
            for part, rate in (("training", "samples_per_s"), ("inference", "megapixels_per_s")):
                own = found[part]
                factor = "" if reference is None else f"x {own[rate] / reference[part][rate]:.2f}"
                cells += [f"{own['ms']:.1f}", f"{own[rate]:.1f}", factor, f"{own['peak_bytes'] / 1e9:.2f}"]
            rows.append(cells)
    return markdown(head, rows)


def _upscaling(results: Mapping[str, Any]) -> str:
    rows = []
    for precision in ("fp32", "bf16", "fp16"):
        for tile in ("full", 512, 256, 128):
            found = results.get(f"4K {precision} tile {tile}")
            if found is not None:
                speed, memory = f"{found['megapixels_per_s']:.1f}", f"{found['peak_bytes'] / 1e9:.2f}"
                rows.append([precision, str(tile), f"{found['ms']:.0f}", speed, memory])
    return markdown(("precision", "tile", "ms", "MP/s", "memory, GB"), rows)


def _attention(results: Mapping[str, Any]) -> str:
    kinds = ("eager core", "eager", "fused")
    rows = []
    for name in ("HAT-light", "HAT", "OCAB"):
        found = results.get(f"attention {name}")
        if found is not None:
            pairs = (f"{found[f'{kind} forward ms']:.3f} / {found[f'{kind} backward ms']:.3f}" for kind in kinds)
            rows.append([name, *pairs])
    return markdown(("shape", *(f"{kind}, forward / backward ms" for kind in kinds)), rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
