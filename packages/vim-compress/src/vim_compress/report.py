"""One self-contained HTML page about a run or a study: curves, sparsity of every layer, receptive field, latency.

Pictures are inline SVG and PNG; the page needs no network and no other file.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, MARGIN = 640, 240, 44  # pixels of a curve
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}svg{background:#fafafa;border:1px solid #ddd}
.bar{background:#4477aa;height:.9rem}img{image-rendering:pixelated;width:192px;margin-right:1rem;border:1px solid #ddd}
code{background:#f3f3f3;padding:0 .2rem}"""


def write_report(folder: Path, out: Path) -> None:
    """Write the page.

    Args:
        folder: Of a training run (config.json, metrics.jsonl, model/) or of a study (study.json).
        out: HTML file.

    Raises:
        ValueError: The folder is neither, or the file cannot be written.
    """
    of_study = (folder / "study.json").is_file()
    if not of_study and not ((folder / "metrics.jsonl").is_file() and (folder / "model" / "config.json").is_file()):
        raise ValueError(
            f"run: {folder} is no run or study; looked for study.json, or metrics.jsonl and model/config.json"
        )
    try:
        body = study_body(json.loads((folder / "study.json").read_text())) if of_study else run_body(folder)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"run: {folder} is not as vim-compress wrote it: {error!r}; run it again") from error
    title = f"vim-compress: {html.escape(folder.resolve().name)}"
    page = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"
    half = out.with_name(out.name + ".tmp")
    try:
        half.write_text(f"{page}<h1>{title}</h1>{body}</html>\n", encoding="utf-8")
        half.replace(out)
    except OSError as error:
        raise ValueError(f"--out: {out} cannot be written: {error}; choose another file") from error


def run_body(folder: Path) -> str:
    """Return the page's inside for a training run."""
    from .info import model_info
    from .masks import load_masks, per_layer, sparsity_of
    from .weights import load_model

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    model = load_model(folder / "model")
    info = model_info(model.config)
    facts = {"parameters": f"{info['parameters']:,}", "multiply-adds, scans included": f"{info['total_macs']:,}"}
    facts["trained on"] = model.config.domain or "?"
    masks = folder / "masks.safetensors"
    parts = [facts_table(facts)]
    for name in ("loss", "lr", "grad_norm"):
        parts.append(f"<h2>{name}</h2>{curve([r['step'] for r in rows], [r[name] for r in rows])}")
    if masks.is_file():
        found = load_masks(masks)
        parts.append(f"<h2>Sparsity of every layer ({100 * sparsity_of(found):.1f} % in all)</h2>")
        parts.append(bars({name: 100 * share for name, share in per_layer(found).items()}, "%", most=100))
    widths = {name: float(size) for name, size in model.config.widths.items()}
    if widths:
        parts.append(f"<h2>Sizes that were cut</h2>{bars(widths, '')}")
    parts.append(f"<h2>Latency on this machine</h2>{bars(latencies(model.config), 'ms')}")
    if model.config.family != "cnn":
        parts.append("<h2>What the class sees</h2><p>Gradient of the largest output by pixel, at the first and at the ")
        parts.append(f"trained weights, on noise: brighter is stronger.</p>{receptive_fields(model)}")
    pictures = sorted((folder / "samples").glob("*.png"))
    if pictures:
        data = base64.b64encode(pictures[-1].read_bytes()).decode()
        parts.append(f"<h2>Held-out pictures</h2><img style='width:auto' src='data:image/png;base64,{data}'>")
    return "".join(parts)


def study_body(study: dict[str, Any]) -> str:
    """Return the page's inside for a study."""
    from .study import summary

    timed = [r if r.get("latency_ms") is not None else {**r, "latency_ms": math.nan} for r in study["rows"]]
    lines = sorted(summary(timed), key=lambda line: -line["top1"])
    head = "<tr><th>method<th>seeds<th>top-1 %<th>spread<th>zeros %<th>parameters<th>M MACs<th>ms</tr>"
    cells = [
        f"<tr><td>{html.escape(r['method'])}<td>{r['seeds']}<td>{r['top1']:.2f}<td>{r['top1_std']:.2f}"
        f"<td>{100 * r['sparsity']:.1f}<td>{r['parameters']:,.0f}<td>{r['total_macs'] / 1e6:.1f}"
        f"<td>{r['latency_ms']:.2f}</tr>"
        for r in lines
    ]
    settings = facts_table({**study["settings"], **{k: v for k, v in study["environment"].items() if v}})
    latency = bars({r["method"]: r["latency_ms"] for r in lines if math.isfinite(r["latency_ms"])}, "ms")
    layers = [r for r in study["rows"] if "per_layer" in r]
    maps = "".join(
        f"<h3>{html.escape(r['method'])}, seed {r['seed']}</h3>"
        + bars({n: 100 * s for n, s in r["per_layer"].items()}, "%", most=100)
        for r in layers[:6]
    )
    failed = f"<p>Failed: {html.escape(', '.join(study['failed']))}</p>" if study.get("failed") else ""
    table = f"<table>{head}{''.join(cells)}</table>{failed}"
    return f"{settings}<h2>Results</h2>{table}<h2>Latency</h2>{latency}<h2>Sparsity by layer</h2>{maps}"


def facts_table(facts: dict[str, Any]) -> str:
    """Return names and values as a table."""
    rows = (f"<tr><td>{html.escape(str(k))}<td>{html.escape(str(v))}</tr>" for k, v in facts.items())
    return f"<table>{''.join(rows)}</table>"


def curve(x: Sequence[float], y: Sequence[float]) -> str:
    """Return a line as SVG, with the ends of both axes written."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    if len(points) < 2:
        return "<p>Too few rows to draw.</p>"
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high, first, last = min(ys), max(ys), min(xs), max(xs)
    tall, wide = HEIGHT - 2 * MARGIN, WIDTH - 2 * MARGIN
    placed = " ".join(
        f"{MARGIN + wide * (a - first) / max(last - first, 1e-12):.1f},"
        f"{HEIGHT - MARGIN - tall * (b - low) / max(high - low, 1e-12):.1f}"
        for a, b in points
    )
    labels = (
        f"<text x='4' y='{MARGIN}'>{high:.3g}</text><text x='4' y='{HEIGHT - MARGIN}'>{low:.3g}</text>"
        f"<text x='{MARGIN}' y='{HEIGHT - 12}'>{first:g}</text>"
        f"<text x='{WIDTH - 2 * MARGIN}' y='{HEIGHT - 12}'>step {last:g}</text>"
    )
    line = f"<polyline points='{placed}' fill='none' stroke='#4477aa' stroke-width='2'/>"
    return f"<svg width='{WIDTH}' height='{HEIGHT}' font-size='12'>{line}{labels}</svg>"


def bars(values: dict[str, float], unit: str, most: float | None = None) -> str:
    """Return values as bars of a table."""
    top = most or max([*values.values(), 1e-12])
    rows = (
        f"<tr><td><code>{html.escape(n)}</code><td>{v:.3g} {unit}<td style='width:20rem'>"
        f"<div class='bar' style='width:{100 * min(v / top, 1):.1f}%'></div></tr>"
        for n, v in values.items()
    )
    return f"<table>{''.join(rows)}</table>"


def latencies(config: Any) -> dict[str, float]:
    """Return the times of one picture and of 16, in milliseconds; of a cut network also those of the whole one."""
    from dataclasses import replace

    from .benchmark import time_network
    from .models import make_network

    configs = {"this network": config}
    if config.widths:
        configs["the same, not cut"] = replace(config, widths={})
    return {
        f"{name}, {batch} at a time": time_network(make_network(one), batch=batch, repeats=5).milliseconds
        for batch in (1, 16)
        for name, one in configs.items()
    }


def receptive_fields(model: Any) -> str:
    """Return pictures of how strongly each pixel moves the largest output, before and after training."""
    from .models import make_network

    fields = [(label, _field(network)) for label, network in (("first", make_network(model.config)), ("now", model))]
    return "".join(f"<img alt='{label}' title='{label}' src='{picture}'>" for label, picture in fields)


def _field(model: Any) -> str:
    import numpy as np
    import torch
    from PIL import Image

    x = torch.randn(4, model.config.channels, *model.config.image, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    model.eval()(x).max(-1).values.sum().backward()
    assert x.grad is not None
    strength = x.grad.abs().mean((0, 1)).sqrt().numpy()
    grey = np.uint8(255 * strength / max(float(strength.max()), 1e-12))
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
