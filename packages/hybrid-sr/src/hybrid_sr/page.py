"""Parts of a self-contained HTML page: draggable sliders, zoomed parts, curves, tables. No file or network beside it.

Pictures are (H, W, 3) uint8 and become lossless WebP, or PNG where WebP's sides end, inside the page.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, MARGIN = 640, 260, 48  # pixels of a curve
LONGEST_WEBP = 16_383  # pixels a side
COLOURS = ("#2a6fb0", "#c05a1c", "#2f8f4e", "#8a4fae")

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; color: #223 }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem } code { background: #eef; padding: 0 .2rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #dde }
td:first-child, th:first-child { text-align: left }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top } figcaption { color: #556 }
.zoom img { image-rendering: pixelated; border: 1px solid #ccd; display: block }
.compare { position: relative; display: block; max-width: 100%; overflow: hidden; cursor: ew-resize; touch-action: none;
  user-select: none; margin-bottom: 1rem; --at: 50% }
.compare img { display: block; width: 100%; height: auto; pointer-events: none }
.compare .after { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at)) }
.compare .bar { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 4px #000 }
.compare span { position: absolute; top: .5rem; padding: 0 .5rem; color: #fff; background: #0008; border-radius: .3rem }
.compare .left { left: .5rem } .compare .right { right: .5rem }
.compare input { position: absolute; left: 0; bottom: 0; width: 100%; margin: 0; opacity: 0; pointer-events: none }
.compare:focus-within .bar { background: #fd4 }
svg { background: #fafbfd; border: 1px solid #dde; max-width: 100%; height: auto }
svg text { fill: #445; font-size: 12px }
"""

SCRIPT = """
for (const frame of document.querySelectorAll(".compare")) {
  const range = frame.querySelector("input");
  const place = share => {
    range.value = Math.min(100, Math.max(0, share));
    frame.style.setProperty("--at", range.value + "%");
  };
  const follow = event => {
    const box = frame.getBoundingClientRect();
    place(100 * (event.clientX - box.left) / box.width);
  };
  frame.addEventListener("pointerdown", event => {
    event.preventDefault();
    range.focus();
    frame.setPointerCapture(event.pointerId);
    follow(event);
  });
  frame.addEventListener("pointermove", event => {
    if (frame.hasPointerCapture(event.pointerId)) follow(event);
  });
  range.addEventListener("input", () => place(range.value));
  place(50);
}
"""


def page(title: str, body: str) -> str:
    """Return a whole page; `title` is text, `body` HTML."""
    named = html.escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{named}</title>'
    icon = '<link rel="icon" href="data:,">'  # else a browser asks for one
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{icon}<style>{STYLE}</style></head>\n'
        f"<body><h1>{named}</h1>\n{body}\n<script>{SCRIPT}</script></body></html>\n"
    )


def slider(before: NDArray[np.uint8], after: NDArray[np.uint8], names: tuple[str, str]) -> str:
    """Return two pictures of one size on top of each other, with a bar that is dragged or moved by the arrow keys."""
    height, width = after.shape[:2]
    size = f'width="{width}" height="{height}"'
    left, right = (html.escape(name) for name in names)
    return (
        f'<div class="compare" style="width:{width}px">'
        f'<img class="before" src="{embedded(before)}" alt="{left}" {size}>'
        f'<img class="after" src="{embedded(after)}" alt="{right}" {size}>'
        f'<div class="bar"></div><span class="left">{left}</span><span class="right">{right}</span>'
        f'<input type="range" min="0" max="100" step="any" value="50" aria-label="{left} or {right}"></div>'
    )


def zoomed(parts: Mapping[str, NDArray[np.uint8]], side: int) -> str:
    """Return small pictures side by side, their pixels enlarged to `side` screen pixels, under their names."""
    figures = (
        f'<figure><img src="{embedded(part)}" alt="{html.escape(name)}" width="{side}" height="{side}">'
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, part in parts.items()
    )
    return f'<div class="zoom">{"".join(figures)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; numbers with a fraction are rounded to four digits after the point, small ones to three."""
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in head)] if head else []
    lines += ["".join(f"<td>{html.escape(_cell(value))}</td>" for value in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], *, logarithmic: bool = False) -> str:
    """Return lines over steps as SVG, the ends of both axes written, a dot where a line has few points.

    Args:
        lines: Name -> (step, value); values that are not finite, or not positive on a logarithmic axis, are left out.
        logarithmic: Draw the values' logarithm.
    """

    def height(value: float) -> float:
        return math.log10(value) if logarithmic else value

    kept = {
        name: [(step, value) for step, value in line if math.isfinite(value) and (value > 0 or not logarithmic)]
        for name, line in lines.items()
    }
    points = [point for line in kept.values() for point in line]
    if not points:
        return "<p>Nothing to draw yet.</p>"
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    wide, tall = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    drawn = []
    for i, (name, line) in enumerate(kept.items()):
        colour = COLOURS[i % len(COLOURS)]
        places = [
            (
                MARGIN + wide * (x - first) / max(last - first, 1e-12),
                HEIGHT - MARGIN - tall * (height(y) - height(low)) / max(height(high) - height(low), 1e-12),
            )
            for x, y in line
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(places) <= 40:
            drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places]
        drawn.append(f'<text x="{MARGIN + 130 * i}" y="20" style="fill:{colour}">{html.escape(name)}</text>')
    ends = (
        f'<text x="4" y="{MARGIN + 4}">{high:.4g}</text><text x="4" y="{HEIGHT - MARGIN + 4}">{low:.4g}</text>'
        f'<text x="{MARGIN}" y="{HEIGHT - 14}">{first:g}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 14}" text-anchor="end">step {last:g}</text>'
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">{"".join(drawn)}{ends}</svg>'


def embedded(pixels: NDArray[np.uint8]) -> str:
    """Return a picture as a link that contains it, every pixel exact."""
    from PIL import Image

    buffer = io.BytesIO()
    kind = "webp" if max(pixels.shape[:2]) <= LONGEST_WEBP else "png"
    options = {"lossless": True, "quality": 60} if kind == "webp" else {}
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
