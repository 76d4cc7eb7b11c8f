"""A page in one file: the flow from noise to field, the sensors, and the field at several resolutions."""

from __future__ import annotations

import base64
import html
import io
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .arguments import ReportOptions
from .commands import chosen_part, default_weights, load, numbers_of, print_json, sample_on
from .device import check_free
from .evaluate import measure_samples
from .fieldset import Part
from .model import SparseField
from .pictures import colours, enlarge, limits
from .predict import Prediction, sample_fields

VIEW = 256  # pixels

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>@TITLE@</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #223 }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top }
img, .field { width: 256px; height: 256px }
img { image-rendering: pixelated; outline: 1px solid #ccd }
.field { position: relative } .field > * { position: absolute; inset: 0 }
circle { fill: #fff; stroke: #000; stroke-width: .15 } .bare circle { display: none }
figcaption { color: #556 } table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right }
input[type=range] { width: 256px; display: block }
</style>
<h1>@TITLE@</h1>
<p>@TEXT@</p>
<h2>From noise to field</h2>
<p><label><input id="mark" type="checkbox" checked> sensors on the field</label></p>
<figure><div class="field"><img id="flow" alt="field">@MARKS@</div><input id="time" type="range" min="0" value="0">
<figcaption id="timetext"></figcaption></figure>
<figure><img src="@SENSORS@" alt="sensors"><figcaption>sensors</figcaption></figure>
<figure><img src="@TRUTH@" alt="truth"><figcaption>truth</figcaption></figure>
<h2>At other resolutions</h2>
<figure><div class="field"><img id="fine" alt="field">@MARKS@</div><input id="size" type="range" min="0" value="0">
<figcaption id="sizetext"></figcaption></figure>
<figure><img id="spread" alt="spread"><figcaption>spread of the samples</figcaption></figure>
<h2>Figures</h2>
@TABLE@
<script>
const frames = @FRAMES@, sizes = @SIZES@;
function slider(input, list, show) {
  input.max = list.length - 1;
  input.oninput = () => show(list[input.value]);
  input.value = list.length - 1;
  input.oninput();
}
const at = id => document.getElementById(id);
at("mark").oninput = event => document.body.classList.toggle("bare", !event.target.checked);
slider(at("time"), frames, f => { at("flow").src = f.picture; at("timetext").textContent = "t = " + f.time; });
slider(at("size"), sizes, s => {
  at("fine").src = s.mean; at("spread").src = s.spread; at("sizetext").textContent = "mean at " + s.name;
});
</script></html>
"""


def report_command(options: ReportOptions) -> int:
    """Run `mamba-diffusion report`."""
    check_free([options.html], overwrite=options.overwrite)
    resolutions = numbers_of(options.resolutions, "--resolutions")
    model, device = load(options, options.weights, default_weights(options))
    part = chosen_part(options, model)
    if part.values.ndim != 3:
        raise ValueError(f"report: {part.name} must be a field over two axes, got {part.values.ndim - 1}")
    page = make_page(model, part, device, options, resolutions)
    options.html.write_text(page, encoding="utf-8")
    if options.json:
        print_json({"html": str(options.html), "part": part.name, "bytes": len(page)})
    else:
        print(f"{options.html} ({len(page) / 1e6:.2f} MB): {part.name}")
    return 0


def make_page(
    model: SparseField, part: Part, device: torch.device, options: ReportOptions, resolutions: list[int]
) -> str:
    """Return the page as text."""
    low, high = limits(part.values)
    shape = part.values.shape
    frames: list[dict[str, Any]] = []

    def seen(t: float, fields: torch.Tensor) -> None:
        field = fields[0].float().cpu().numpy().reshape(shape)
        frames.append({"time": round(t, 3), "picture": picture(colours(field, low, high))})

    asked = options.prediction()
    samples = flow(model, part, device, asked, seen).reshape(-1, *shape)
    sizes = []
    for resolution in resolutions:
        fine = sample_on(model, part, device, options, (resolution, resolution))
        spread = fine.std(0).mean(-1)
        grey = np.repeat((255 * spread / max(float(spread.max()), 1e-12)).astype(np.uint8)[..., None], 3, -1)
        name = f"{resolution} x {resolution}"
        sizes.append({"name": name, "mean": picture(colours(fine.mean(0), low, high)), "spread": picture(grey)})
    sparse = np.full_like(part.flat, np.nan)
    sparse[part.sensors] = part.flat[part.sensors]
    figures = measure_samples(samples, part.values, part.peak)
    text = f"{len(part.sensors)} sensors on a field of {shape[1]} x {shape[0]} points, {len(samples)} samples, "
    text += f"{asked.sampler.sampler} with {asked.sampler.steps} steps."
    filled = {
        "TITLE": html.escape(part.name),
        "TEXT": html.escape(text),
        "MARKS": marks(part),
        "SENSORS": picture(colours(sparse.reshape(shape), low, high)),
        "TRUTH": picture(colours(part.values, low, high)),
        "TABLE": figure_table(figures),
        "FRAMES": json.dumps(frames),
        "SIZES": json.dumps(sizes),
    }
    page = PAGE
    for name, value in filled.items():
        page = page.replace(f"@{name}@", value)
    return page


def flow(model: SparseField, part: Part, device: torch.device, asked: Prediction, seen: Any) -> NDArray[np.float32]:
    """Draw samples on the part's own grid, telling every step; (K, points, C)."""
    coords, values = (torch.from_numpy(x).to(device)[None] for x in part.observed)
    queries = torch.from_numpy(part.coords).to(device)[None]
    return sample_fields(model, coords, values, queries, asked, seen=seen)[0].float().cpu().numpy()


def marks(part: Part) -> str:
    """Return the places of the sensors as circles to lie on a picture of the field, whatever its resolution."""
    height, width = part.values.shape[:2]
    places = part.coords[part.sensors] * (width, height)
    circles = "".join(f'<circle cx="{x:.4g}" cy="{y:.4g}" r=".25"/>' for x, y in places)
    return f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{circles}</svg>'


def figure_table(figures: dict[str, Any]) -> str:
    """Return figures as an HTML table."""
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{v:.4f}</td></tr>" for k, v in figures.items() if np.isfinite(v))
    return f"<table>{rows}</table>"


def picture(pixels: NDArray[np.uint8]) -> str:
    """Return pixels as a PNG inside a link."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(enlarge(pixels, VIEW)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
