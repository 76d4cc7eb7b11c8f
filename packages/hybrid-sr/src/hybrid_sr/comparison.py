"""`upscale --compare`: one page with bicubic enlargement and the result under a bar that is dragged."""

from __future__ import annotations

from pathlib import Path

from .files import Job
from .images import read_picture
from .page import page, slider
from .resize import imresize


def write_comparison(out: Path, job: Job, scale: int) -> None:
    """Write the page of one upscaled picture.

    Args:
        out: The .html file.
        job: The picture and its result, both on the disk.
        scale: Upscaling factor.

    Raises:
        ValueError: It cannot be written, or a picture cannot be read.
    """
    from .report import write_page

    source, result = read_picture(job.source).rgb8(), read_picture(job.target, max_megapixels=1e6).rgb8()
    bar = slider(imresize(source, scale), result, ("bicubic", "hybrid-sr"))
    sizes = f"{source.shape[1]}x{source.shape[0]} to {result.shape[1]}x{result.shape[0]} pixels"
    write_page(out, page(job.source.name, f"<p>{sizes}. Drag the bar, or move it with the arrow keys.</p>{bar}"))
