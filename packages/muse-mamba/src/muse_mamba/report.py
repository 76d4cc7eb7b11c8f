"""One self-contained HTML page about a sentence: its pictures, and how the tokens were settled, step by step."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arguments import ReportOptions
from .generating import arguments_of, check_count, check_prompts, check_weights, load

if TYPE_CHECKING:
    from torch import Tensor

    from .pipeline import MuseMambaPipeline

FILMS = 4  # pictures of a sentence whose steps are shown

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>@TITLE@</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #223 }
img { image-rendering: pixelated; border: 1px solid #ccd; margin: 2px }
.grid img { width: 128px; height: 128px } .film { overflow-x: auto; white-space: nowrap }
.film img { width: 72px; height: 72px } table { border-collapse: collapse }
th, td { padding: .1rem .8rem .1rem 0; text-align: left; font-weight: normal } th { color: #556 }
</style>
<h1>@TITLE@</h1>
@BODY@
<h2>Settings</h2>
@TABLE@
</html>
"""


def report_command(prompts: list[str], options: ReportOptions) -> int:
    """Run `muse-mamba report`."""
    check_prompts(prompts)
    check_count(prompts, options.num)
    if options.html.exists() and not options.overwrite:
        raise ValueError(f"--html: {options.html} exists; add --overwrite, or choose another file")
    if not options.html.absolute().parent.is_dir():
        raise ValueError(f"--html: {options.html.parent} is no folder; make it, or choose another file")
    check_weights(options)
    start = time.monotonic()
    pipeline = load(options)
    page = make_page(pipeline, prompts, options)
    half = options.html.with_name(options.html.name + ".tmp")
    half.write_text(page, encoding="utf-8")
    half.replace(options.html)
    seconds = time.monotonic() - start
    if options.json:
        print(json.dumps({"html": str(options.html), "bytes": len(page), "seconds": round(seconds, 2)}, indent=2))
    else:
        print(f"{options.html} ({len(page) / 1e6:.2f} MB) in {seconds:.1f} s")
    return 0


def make_page(pipeline: MuseMambaPipeline, prompts: list[str], options: ReportOptions) -> str:
    """Draw all pictures and return the page as text."""
    import torch

    frames: list[Tensor] = []
    made = pipeline(
        prompts,
        **arguments_of(options),
        num_images_per_prompt=options.num,
        callback=lambda step, tokens: frames.append(tokens.clone()),
    )
    parts = []
    for number, prompt in enumerate(prompts):
        own = range(number * options.num, (number + 1) * options.num)
        parts.append(f"<h2>{html.escape(prompt)}</h2>")
        pictures = "".join(picture(np.asarray(made.images[row]), f"picture {row}") for row in own)
        parts.append(f'<div class="grid">{pictures}</div><p>What the model would draw after each step, from the first')
        parts.append(" to the last; tokens that are not settled yet may still change.</p>")
        for row in list(own)[:FILMS]:
            film = to_pixels(pipeline, torch.stack([tokens[row] for tokens in frames]))
            strip = "".join(picture(pixels, f"step {step + 1}") for step, pixels in enumerate(film))
            parts.append(f'<div class="film">{strip}</div>')
    title = prompts[0] if len(prompts) == 1 else f"{len(prompts)} sentences"
    filled = {"TITLE": html.escape(title), "BODY": "".join(parts), "TABLE": settings_table(pipeline, options)}
    return re.sub("@(TITLE|BODY|TABLE)@", lambda found: filled[found[1]], PAGE)


def to_pixels(pipeline: MuseMambaPipeline, tokens: Tensor) -> NDArray[np.uint8]:
    """Return pictures (n, H, W, 3) uint8 of tokens (n, L)."""
    import torch

    pictures = pipeline.tokenizer.decode(tokens.unflatten(1, pipeline.model.config.grid))
    return (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def settings_table(pipeline: MuseMambaPipeline, options: ReportOptions) -> str:
    """Return what the pictures depend on as an HTML table."""
    config = pipeline.model.config
    facts: dict[str, Any] = {
        "method": config.method,
        "parameters": f"{sum(p.numel() for p in pipeline.model.parameters()):,}",
        "tokens": f"{config.grid[0]} x {config.grid[1]} of {config.vocab}",
    }
    facts |= {k: v for k, v in vars(options).items() if k not in ("html", "overwrite", "json") and v is not None}
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    return f"<table>{rows}</table>"


def picture(pixels: NDArray[np.uint8], title: str) -> str:
    """Return pixels as an image with its PNG inside."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img title="{html.escape(title)}" alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
