"""The verbs that make pictures: generate, inpaint, outpaint, variation. Arguments are checked before torch is there."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .arguments import (
    DrawingOptions,
    GenerateOptions,
    InpaintOptions,
    OutpaintOptions,
    SamplingOptions,
    VariationOptions,
)
from .config import why_not_upscaler
from .weights import MODEL_NAME, find_model, find_tokenizer, find_upscaler, read_model_config

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from .model import TokenModel
    from .pipeline import MuseMambaPipeline

LONGEST = 1_000  # characters of a sentence
MOST_PICTURES = 256  # of one command: all are drawn at once


def generate_command(prompts: list[str], options: GenerateOptions) -> int:
    """Run `muse-mamba generate`."""
    check_prompts(prompts)
    files = plan_files(options, prompts, options.num)
    check_weights(options)
    check_upscaler(options)
    make_folder(options.out)
    start = time.monotonic()
    pipeline = load(options)
    second = None if options.upscaler is None else load_second(options.upscaler)
    settings = arguments_of(options)  # its generator goes on from the first model to the second
    made = pipeline(prompts, **settings, num_images_per_prompt=options.num)
    if second is not None:
        larger = pipeline.upscaled_by(second)  # with the text encoder, which is loaded by now
        larger.set_progress_bar_config(disable=not sys.stderr.isatty())
        made = larger(prompts, **settings, num_images_per_prompt=options.num, cond_ids=made.ids)
    return write(made.images, files, prompts, options, time.monotonic() - start, {"verb": "generate"})


def inpaint_command(prompts: list[str], options: InpaintOptions) -> int:
    """Run `muse-mamba inpaint`: draw anew what a mask marks in a picture."""
    check_prompts(prompts)
    assert options.image is not None
    assert options.mask is not None
    picture, mask = read_picture(options.image), read_picture(options.mask)
    files = plan_files(options, prompts, options.num)
    check_weights(options)
    make_folder(options.out)
    start = time.monotonic()
    pipeline = load(options)
    ids = encode_picture(pipeline, picture)
    hidden = token_mask(pipeline, mask.mean(-1) > 127)
    made = _filled(pipeline, prompts, options, ids, hidden)
    said = {"verb": "inpaint", "image": str(options.image)}
    return write(made, files, prompts, options, time.monotonic() - start, said)


def outpaint_command(prompts: list[str], options: OutpaintOptions) -> int:
    """Run `muse-mamba outpaint`: shrink a picture and draw what could be around it."""
    check_prompts(prompts)
    assert options.image is not None
    picture = read_picture(options.image)
    files = plan_files(options, prompts, options.num)
    check_weights(options)
    make_folder(options.out)
    start = time.monotonic()
    pipeline = load(options)
    inside = shrink(picture, side_of(pipeline), options.share)
    hidden = token_mask(pipeline, inside[1])
    made = _filled(pipeline, prompts, options, encode_picture(pipeline, inside[0]), hidden)
    said = {"verb": "outpaint", "image": str(options.image), "share": options.share}
    return write(made, files, prompts, options, time.monotonic() - start, said)


def variation_command(prompts: list[str], options: VariationOptions) -> int:
    """Run `muse-mamba variation`: hide a share of a picture's tokens and draw them anew."""
    check_prompts(prompts)
    assert options.image is not None
    picture = read_picture(options.image)
    files = plan_files(options, prompts, options.num)
    check_weights(options)
    make_folder(options.out)
    start = time.monotonic()
    import torch

    pipeline = load(options)
    ids = encode_picture(pipeline, picture)
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.rand(len(prompts) * options.num, ids.shape[-1], generator=generator).argsort(-1)
    hidden = order < max(1, round(options.strength * ids.shape[-1]))
    made = _filled(pipeline, prompts, options, ids, hidden)
    said = {"verb": "variation", "image": str(options.image), "strength": options.strength}
    return write(made, files, prompts, options, time.monotonic() - start, said)


def _filled(
    pipeline: MuseMambaPipeline, prompts: list[str], options: SamplingOptions, ids: Tensor, hidden: Tensor
) -> list[Image]:
    import torch

    rows = len(prompts) * options.num
    start = torch.where(hidden.expand(rows, -1), pipeline.model.config.vocab, ids.expand(rows, -1))
    return pipeline(prompts, **arguments_of(options), num_images_per_prompt=options.num, ids=start).images


def check_prompts(prompts: list[str]) -> None:
    """Refuse sentences that say nothing or far too much.

    Raises:
        ValueError: There is none, one is empty, too long, or no text.
    """
    if not prompts:
        raise ValueError('no prompt given; say what shall be drawn, as in: muse-mamba generate "a red apple"')
    for prompt in prompts:
        if not prompt.strip():
            raise ValueError("a prompt is empty; say what shall be drawn")
        if len(prompt) > LONGEST:
            raise ValueError(f"a prompt must have at most {LONGEST} characters, got {len(prompt)}; shorten it")
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # what Python makes of bytes that are no UTF-8
            raise ValueError("a prompt has bytes that are no text; write it in UTF-8")


def check_count(prompts: list[str], num: int) -> None:
    """Refuse more pictures than fit into memory together.

    Raises:
        ValueError: There are more.
    """
    if len(prompts) * num > MOST_PICTURES:
        found = f"{len(prompts)} x {num}"
        remedy = "lower --num and give the command again with another --seed"
        raise ValueError(f"--num: must make at most {MOST_PICTURES} pictures at a time, got {found}; {remedy}")


def check_weights(options: SamplingOptions) -> None:
    """Refuse to go on without weights, before anything heavy is imported.

    Raises:
        ValueError: A folder is missing, or its model draws nothing on its own; the message says what to do.
    """
    folder = find_model(options.model)
    find_tokenizer(options.tokenizer)
    if read_model_config(folder).cond_vocab:
        wanted = "a model that draws from the text alone"
        remedy = "give it to muse-mamba generate as --upscaler"
        raise ValueError(f"--model: must be {wanted}, got {folder}, a super-resolution model; {remedy}")


def check_upscaler(options: GenerateOptions) -> None:
    """Refuse a second model that does not fit to the first, before anything heavy is imported.

    Raises:
        ValueError: The folder holds none, or one that was made for other tokens, codes or text.
    """
    if options.upscaler is None:
        return
    small, large = (read_model_config(f) for f in (find_model(options.model), find_upscaler(options.upscaler)))
    if reason := why_not_upscaler(small, large):
        raise ValueError(f"--upscaler: {options.upscaler} {reason}")


def load(options: SamplingOptions) -> MuseMambaPipeline:
    """Build the pipeline on its device.

    Raises:
        ValueError: The device is not there.
    """
    import torch
    from diffusers.utils import logging

    logging.set_verbosity_error()  # its notes about libraries that it found are not for this command's user
    from .devices import pick_device
    from .pipeline import MuseMambaPipeline

    device = pick_device(options.device)
    torch.manual_seed(options.seed)
    pipeline = MuseMambaPipeline.shipped(options.model, options.tokenizer, options.text_encoder)
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
    scheduler = pipeline.scheduler
    scheduler.register_to_config(
        order=options.order, top_k=options.top_k, sample_temperature=options.sample_temperature
    )
    return pipeline.to(device)


def load_second(folder: Path) -> TokenModel:
    """Build the second model, before the first draws: a damaged file is said at once."""
    from .model import TokenModel

    return TokenModel.from_pretrained(folder)


def arguments_of(options: SamplingOptions) -> dict[str, Any]:
    """Return the settings as the pipeline wants them."""
    import torch

    return {
        "negative_prompt": options.negative,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "guidance_ramp": options.guidance_ramp,
        "temperature": (options.mask_temperature, 0.0),
        "generator": torch.Generator().manual_seed(options.seed),
    }


def plan_files(options: DrawingOptions, prompts: list[str], num: int) -> list[Path]:
    """Return the files of the pictures, one each, and see that none is overwritten.

    Raises:
        ValueError: One exists, the folder is a file, or there are too many.
    """
    check_count(prompts, num)
    names = [re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture" for prompt in prompts]
    files = [options.out / f"{name}-{options.seed}-{i}.png" for name in names for i in range(num)]
    if len(set(files)) < len(files):
        files = [f.with_name(f"{n:03d}-{f.name}") for n, f in enumerate(files)]
    wanted = [*files, *([_grid_file(options)] if len(files) > 1 else [])]
    for file in wanted:
        if file.exists() and not options.overwrite:
            raise ValueError(f"{file} exists; add --overwrite, or choose another --out or --seed")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out: must be a folder, {options.out} is a file")
    return files


def make_folder(out: Path) -> None:
    """Make the folder of the pictures, before they are drawn.

    Raises:
        ValueError: It cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: {out} cannot be made: {error.strerror}; choose another folder") from error


def _grid_file(options: DrawingOptions) -> Path:
    return options.out / f"grid-{options.seed}.png"


def write(
    images: list[Image],
    files: list[Path],
    prompts: list[str],
    options: DrawingOptions,
    seconds: float,
    said: dict[str, Any],
) -> int:
    """Write every picture with its settings inside, a grid of all, and say where they are."""
    from PIL import Image as Images
    from PIL.PngImagePlugin import PngInfo

    settings = said | {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in ("json", "overwrite", "out", "image", "mask")
    }
    settings["model"] = str(options.model or MODEL_NAME)
    for number, (image, file) in enumerate(zip(images, files, strict=True)):
        info = PngInfo()
        info.add_text("muse-mamba", json.dumps(settings | {"prompt": prompts[number // options.num]}))
        enlarged = image.resize([n * options.enlarge for n in image.size], Images.Resampling.NEAREST)
        enlarged.save(file, pnginfo=info)
    grid = None
    if len(files) > 1:
        grid = _grid_file(options)
        side = images[0].size
        sheet = Images.new("RGB", (side[0] * options.num, side[1] * len(prompts)), "white")
        for number, image in enumerate(images):
            sheet.paste(image, (number % options.num * side[0], number // options.num * side[1]))
        info = PngInfo()
        info.add_text("muse-mamba", json.dumps(settings | {"prompts": prompts}))
        sheet.resize([n * options.enlarge for n in sheet.size], Images.Resampling.NEAREST).save(grid, pnginfo=info)
    if options.json:
        found = {"files": [str(f) for f in files], "grid": str(grid) if grid else None, "seconds": round(seconds, 2)}
        print(json.dumps(settings | {"prompts": prompts} | found, indent=2))
        return 0
    print(f"{len(files)} picture{'s' if len(files) > 1 else ''} in {seconds:.1f} s")
    for file in files if grid is None else [*files, grid]:
        print(f"  {file}")
    return 0


def read_picture(file: Path) -> np.ndarray:
    """Read a picture, (H, W, 3) uint8.

    Raises:
        ValueError: It cannot be read.
    """
    from .sources import open_image

    try:
        return open_image(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file}: cannot be read as a picture: {error}") from error


def side_of(pipeline: MuseMambaPipeline) -> int:
    """Return the side of the model's pictures in pixels."""
    return pipeline.model.config.grid[0] * pipeline.tokenizer.config.factor


def encode_picture(pipeline: MuseMambaPipeline, picture: np.ndarray) -> Tensor:
    """Return the tokens of a picture brought to the model's size, (1, L)."""
    import torch

    from .data import square

    pixels = square(picture, side_of(pipeline))
    x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None].to(pipeline.device).float() / 255
    return pipeline.tokenizer.encode(x).flatten(1)


def token_mask(pipeline: MuseMambaPipeline, marked: np.ndarray) -> Tensor:
    """Return which tokens are touched by marked pixels (H, W), (1, L).

    Raises:
        ValueError: Nothing is marked.
    """
    import torch

    from .data import square

    side, factor = side_of(pipeline), pipeline.tokenizer.config.factor
    pixels = square(np.repeat((marked * 255).astype(np.uint8)[..., None], 3, -1), side)[..., 0] > 127
    rows = side // factor
    touched = pixels.reshape(rows, factor, rows, factor).any((1, 3)).flatten()
    if not touched.any():
        remedy = "paint what shall be drawn anew white"
        raise ValueError(f"the mask marks nothing in the picture's middle square, which is what is drawn; {remedy}")
    return torch.from_numpy(touched)[None].to(pipeline.device)


def shrink(picture: np.ndarray, side: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture made smaller on white ground, and which pixels of the result are new, (side, side) bool.

    Raises:
        ValueError: None is.
    """
    from PIL import Image as Images

    from .data import square

    inner = max(1, round(side * share))
    if inner == side:
        raise ValueError(f"--share: must leave something to draw of {side} pixels, got {share}; take a smaller one")
    first = (side - inner) // 2
    small = Images.fromarray(square(picture, side)).resize((inner, inner), Images.Resampling.LANCZOS)
    ground = np.full((side, side, 3), 255, np.uint8)
    ground[first : first + inner, first : first + inner] = np.asarray(small)
    new = np.ones((side, side), bool)
    new[first : first + inner, first : first + inner] = False
    return ground, new
