"""The verb `evaluate`: generated pictures against real ones, or reconstructions against their originals, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .arguments_measure import EvaluateOptions, refuse_existing
from .data import as_tensor, is_streamed
from .decoding import DecodeOptions, decode
from .devices import pick_device
from .judge import Judge, align, judge_hash
from .metrics import code_statistics, flat_share, psnr, ssim
from .model import TokenModel
from .packed import Pictured, is_packed, load_packed, read_all
from .recipes import TrainConfig
from .rows import read_rows
from .sheets import caption_sheet, pair_sheet
from .sources import find_pictures
from .text import TextCache, TextEncoder
from .tokenizer import VQTokenizer
from .tokenizer.quantize import usage
from .tokenizer.validation import reconstruct
from .validation import make_examples, measure
from .weights import find_judge, find_model, find_tokenizer

BATCH = 32  # pictures decoded at a time
SHOWN, SHEET_ROWS, MOST_DRAWN = 8, 16, 4  # pictures and captions on sheets
LARGEST = 4096  # pixels on a side: larger pictures fill the memory
WIDEST = 2048  # pixels of a sheet of reconstructions, if it is not of two pictures only


def evaluate_command(options: EvaluateOptions) -> int:
    """Run `muse-mamba evaluate`."""
    sizes = _sizes(options.sizes)
    if options.sheet is not None and options.tokenizer_only:
        for size in sizes:
            refuse_existing("sheet", _sheet(options.sheet, size, sizes), options.overwrite)
    tokenizer_folder = find_tokenizer(options.tokenizer)
    model_folder = None if options.tokenizer_only else find_model(options.model)
    judge_folder = None if options.tokenizer_only or not options.prompts else find_judge(options.judge)
    device = pick_device(options.device)
    pictures, training, cache = _pictures(options)
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, device=device)
    if model_folder is None:
        result = evaluate_tokenizer(tokenizer, pictures, sizes, options, device)
    else:
        model = TokenModel.from_pretrained(model_folder, device=device)
        drawn = draw_split(model, tokenizer, pictures, cache, options, device)
        result = evaluate_model(model, tokenizer, pictures, drawn, options, device)
        if judge_folder is not None and not options.no_features:
            result["alignment"] = judged(judge_folder, drawn, options, device)
        if options.sheet is not None:
            result["nearest"] = model_sheet(drawn, pictures, training, options, device)
    text = _text(result, options)
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text)
        print(options.out)
    return 0


def _text(result: dict[str, Any], options: EvaluateOptions) -> str:
    data = Path(options.data).name if options.data else "openmoji"
    return json.dumps({"split": options.split, "data": data, **result}, indent=1) + "\n"


def _pictures(options: EvaluateOptions) -> tuple[list[Pictured], list[Pictured], TextCache | None]:
    """Return the pictures of the split, those of training, and encoded captions."""
    cache = None
    if is_packed(options.data):
        assert options.data is not None
        found, cache = load_packed(Path(options.data))
    elif is_streamed(options.data):
        assert options.data is not None
        found = read_rows(options.data, verbose=True)
    else:
        sources = [p for p in find_pictures(options.data) if p.captions or options.tokenizer_only]
        if not sources:
            remedy = "write metadata.jsonl with rows of file_name and text, or give --tokenizer_only"
            raise ValueError(f"--data: no picture in {options.data} has a caption; {remedy}")
        wanted = [p for p in sources if p.split == options.split]
        size = max(_sizes(options.sizes)) if options.tokenizer_only else None
        found = read_all(wanted[: options.num or None] or sources[:1], size)
    chosen = [p for p in found if p.split == options.split]
    if not chosen:
        splits = ", ".join(sorted({p.split for p in found}))
        raise ValueError(f"--split: no {options.split} pictures in {options.data}; it has {splits}")
    chosen = chosen[: options.num] if options.num else chosen
    return chosen, [p for p in found if p.split == "train"], cache


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--sizes: must be pixels separated by commas, got {text}") from error
    if not 1 <= min(sizes) <= max(sizes) <= LARGEST:
        raise ValueError(f"--sizes: must be from 1 to {LARGEST}, got {text}; change it")
    return sizes


def _sheet(file: Path, size: int, sizes: list[int]) -> Path:
    """Return the file of a size: `--sheet` itself, or one beside it where there are several."""
    return file if len(sizes) == 1 else file.with_stem(f"{file.stem}-{size}")


def evaluate_tokenizer(
    tokenizer: VQTokenizer,
    pictures: Sequence[Pictured],
    sizes: list[int],
    options: EvaluateOptions,
    device: torch.device,
) -> dict[str, Any]:
    """Measure reconstructions at several sizes; each must be a multiple of the tokenizer's factor."""
    rows = []
    for size in sizes:
        originals = as_tensor(pictures, size)
        made, ids = reconstruct(tokenizer, originals, device)
        a, b = (x.permute(0, 2, 3, 1).numpy() for x in (originals, made))
        share, perplexity = usage(torch.bincount(ids.flatten(), minlength=tokenizer.config.codes).float())
        row: dict[str, Any] = {"size": size, "n": len(a), "psnr": psnr(a, b), "ssim": ssim(a, b)}
        row |= {"code_usage": share, "code_perplexity": perplexity}
        found = _distances(a, b, options, device)
        rows.append(row | {("rFID" if name == "FID" else name): value for name, value in found.items()})
        if options.lpips is not None:
            from .features import lpips

            rows[-1] |= lpips(a, b, options.lpips, device)
        if options.sheet is not None:
            shown = min(SHOWN, max(2, WIDEST // size))
            pair_sheet(a[:shown], b[:shown], _sheet(options.sheet, size, sizes))
        if options.out is not None:  # what was measured stays when the machine is taken away
            options.out.write_text(_text({"kind": "tokenizer", "rows": rows}, options))
    return {"kind": "tokenizer", "rows": rows}


class Drawn(NamedTuple):
    """Pictures of captions: `pixels` (k * n, H, W, 3) uint8, k of the first caption first, and `ids` (k * n, L)."""

    captions: list[str]
    pixels: NDArray[np.uint8]
    ids: NDArray[np.integer]
    cache: TextCache


def draw_split(
    model: TokenModel,
    tokenizer: VQTokenizer,
    pictures: Sequence[Pictured],
    cache: TextCache | None,
    options: EvaluateOptions,
    device: torch.device,
) -> Drawn:
    """Draw pictures of the first captions of a split, each caption once."""
    if cache is None:
        encoder = TextEncoder(options.text_encoder, length=model.config.text_length, device=device)
        cache = TextCache.encode(encoder, [c for p in pictures for c in p.captions])
    captions = list(dict.fromkeys(p.captions[0] for p in pictures))
    every = [caption for caption in captions for _ in range(options.per_caption)]
    settings = DecodeOptions(steps=options.steps, guidance=options.guidance)
    generator = torch.Generator().manual_seed(options.seed)
    made, tokens = [], []
    for first in range(0, len(every), BATCH):
        part = every[first : first + BATCH]
        text, mask = cache.batch([cache.place[c] for c in part], model.config.text_length)
        states, kept = torch.from_numpy(text).to(device), torch.from_numpy(mask).to(device)
        ids = decode(model, states, kept, settings, generator=generator)
        drawn = tokenizer.decode(ids.unflatten(1, model.config.grid))
        made.append((drawn * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
        tokens.append(ids.cpu().numpy())
    return Drawn(captions, np.concatenate(made), np.concatenate(tokens), cache)


def evaluate_model(
    model: TokenModel,
    tokenizer: VQTokenizer,
    pictures: Sequence[Pictured],
    drawn: Drawn,
    options: EvaluateOptions,
    device: torch.device,
) -> dict[str, Any]:
    """Compare drawn pictures with the real ones; losses on the real ones' tokens."""
    side = model.config.grid[0] * tokenizer.config.factor
    shown = make_examples(TrainConfig(model=model.config), tokenizer, pictures, drawn.cache, side)
    real = as_tensor(pictures, side).permute(0, 2, 3, 1).numpy()
    result: dict[str, Any] = {
        "kind": "model",
        "method": model.config.method,
        "parameters": sum(p.numel() for p in model.parameters()),
        "n": len(drawn.pixels),
        "per_caption": options.per_caption,
        "steps": options.steps,
        "guidance": options.guidance,
        "seed": options.seed,
        "loss_over_ln_V": measure(model, shown),
        "flat_share": flat_share(drawn.pixels),
        "flat_share_real": flat_share(real),
        **code_statistics(drawn.ids, model.config.vocab),
        **_distances(real, drawn.pixels, options, device),
    }
    if options.clip is not None:
        from .features import clip_score

        every = [caption for caption in drawn.captions for _ in range(options.per_caption)]
        result |= clip_score(drawn.pixels, every, options.clip, device)
    return result


def judged(folder: Path, drawn: Drawn, options: EvaluateOptions, device: torch.device) -> dict[str, Any]:
    """Let a judge look for the captions of the drawn pictures.

    Raises:
        ValueError: The captions were encoded for another text encoder than the judge's.
    """
    judge = Judge.from_pretrained(folder)
    if judge.config.encoder != drawn.cache.encoder:
        remedy = "pack the data with the judge's --text-encoder, or train a judge for this one"
        found = f"captions of {drawn.cache.encoder}"
        raise ValueError(f"--judge: its text encoder is {judge.config.encoder}, got {found}; {remedy}")
    captions = drawn.captions[: options.prompts]
    pictures = drawn.pixels[: len(captions) * options.per_caption]
    return align(judge, pictures, captions, drawn.cache, device) | {"judge_sha256": judge_hash(folder)}


def model_sheet(
    drawn: Drawn,
    pictures: Sequence[Pictured],
    training: Sequence[Pictured],
    options: EvaluateOptions,
    device: torch.device,
) -> dict[str, Any]:
    """Save the first captions with a real picture, drawn ones, and the training pictures nearest to the first drawn.

    Returns:
        How near they are: median cosine of features, and median PSNR of pixels.
    """
    from .nearest import nearest

    assert options.sheet is not None
    captions = drawn.captions[:SHEET_ROWS]
    every = drawn.pixels.reshape(len(drawn.captions), options.per_caption, *drawn.pixels.shape[1:])[: len(captions)]
    side = every.shape[2]
    real = [next(p for p in pictures if p.captions[0] == caption) for caption in captions]
    groups = [("real", as_tensor(real, side).permute(0, 2, 3, 1).numpy()[:, None]), ("drawn", every[:, :MOST_DRAWN])]
    said: dict[str, Any] = {}
    if training and not options.no_features:
        found = nearest(every[:, 0], training, device)
        groups.append(("nearest in training: features, pixels", found.pictures))
        cosine, psnr_found = np.median(found.nearness, axis=0)
        said = {"n": len(captions), "median_cosine": float(cosine), "median_psnr": float(psnr_found)}
    caption_sheet(captions, groups, options.sheet)
    return said


def _distances(real: np.ndarray, made: np.ndarray, options: EvaluateOptions, device: torch.device) -> dict[str, Any]:
    from .features import feature_distances, inception_distance

    found: dict[str, Any] = {} if options.no_features else feature_distances(real, made, device)
    if options.inception is not None:
        found |= inception_distance(real, made, options.inception, device)
    return found
