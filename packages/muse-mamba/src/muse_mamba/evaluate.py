"""The verb `evaluate`: generated pictures against real ones, or reconstructions against their originals, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .arguments import EvaluateOptions
from .data import as_tensor, open_collection
from .decoding import DecodeOptions, decode
from .devices import pick_device
from .metrics import code_statistics, flat_share, psnr, ssim
from .model import TokenModel
from .packed import Pictured, is_packed, load_packed
from .recipes import TrainConfig
from .text import TextCache, TextEncoder
from .tokenizer import VQTokenizer
from .tokenizer.quantize import usage
from .tokenizer.validation import reconstruct
from .validation import make_examples, measure
from .weights import find_model, find_tokenizer

BATCH = 32  # pictures decoded at a time


def evaluate_command(options: EvaluateOptions) -> int:
    """Run `muse-mamba evaluate`."""
    if options.out is not None and options.out.exists() and not options.overwrite:
        raise ValueError(f"--out: {options.out} exists; add --overwrite, or choose another file")
    tokenizer_folder = find_tokenizer(options.tokenizer)
    model_folder = None if options.tokenizer_only else find_model(options.model)
    device = pick_device(options.device)
    pictures, cache = _pictures(options)
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, device=device)
    if model_folder is None:
        result = evaluate_tokenizer(tokenizer, pictures, _sizes(options.sizes), options, device)
    else:
        model = TokenModel.from_pretrained(model_folder, device=device)
        result = evaluate_model(model, tokenizer, pictures, cache, options, device)
    result = {"split": options.split, "data": str(options.data or "openmoji"), **result}
    text = json.dumps(result, indent=1) + "\n"
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text)
        print(options.out)
    return 0


def _pictures(options: EvaluateOptions) -> tuple[list[Pictured], TextCache | None]:
    cache = None
    if is_packed(options.data):
        assert options.data is not None
        found, cache = load_packed(Path(options.data))
    else:
        size = max(_sizes(options.sizes))
        collection = open_collection(options.data, size=size, captioned=not options.tokenizer_only, verbose=True)
        found = [*collection.train, *collection.validation, *collection.other]
    chosen = [p for p in found if p.split == options.split]
    if not chosen:
        splits = ", ".join(sorted({p.split for p in found}))
        raise ValueError(f"--split: no {options.split} pictures in {options.data}; it has {splits}")
    chosen = chosen[: options.num] if options.num else chosen
    return chosen, cache


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--sizes: must be pixels separated by commas, got {text}") from error
    if min(sizes) < 1:
        raise ValueError(f"--sizes: must be at least 1, got {text}")
    return sizes


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
        rows.append(row | _distances(a, b, options, device))
    return {"kind": "tokenizer", "rows": rows}


def evaluate_model(
    model: TokenModel,
    tokenizer: VQTokenizer,
    pictures: Sequence[Pictured],
    cache: TextCache | None,
    options: EvaluateOptions,
    device: torch.device,
) -> dict[str, Any]:
    """Draw a picture of every caption and compare with the real ones; losses on the real ones' tokens."""
    if cache is None:
        encoder = TextEncoder(options.text_encoder, length=model.config.text_length, device=device)
        cache = TextCache.encode(encoder, [c for p in pictures for c in p.captions])
    side = model.config.grid[0] * tokenizer.config.factor
    cfg = TrainConfig(model=model.config)
    shown = make_examples(cfg, tokenizer, pictures, cache, side)
    losses = measure(model, shown)
    captions = [p.captions[0] for p in pictures]
    settings = DecodeOptions(steps=options.steps, guidance=options.guidance)
    generator = torch.Generator().manual_seed(options.seed)
    made, tokens = [], []
    for first in range(0, len(captions), BATCH):
        part = captions[first : first + BATCH]
        text, mask = cache.batch([cache.place[c] for c in part], model.config.text_length)
        states, kept = torch.from_numpy(text).to(device), torch.from_numpy(mask).to(device)
        ids = decode(model, states, kept, settings, generator=generator)
        drawn = tokenizer.decode(ids.unflatten(1, model.config.grid))
        made.append((drawn * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
        tokens.append(ids.cpu().numpy())
    pixels, real = np.concatenate(made), as_tensor(pictures, side).permute(0, 2, 3, 1).numpy()
    result: dict[str, Any] = {
        "kind": "model",
        "method": model.config.method,
        "n": len(pixels),
        "steps": options.steps,
        "guidance": options.guidance,
        "seed": options.seed,
        "loss_over_ln_V": losses,
        "flat_share": flat_share(pixels),
        "flat_share_real": flat_share(real),
        **code_statistics(np.concatenate(tokens), model.config.vocab),
        **_distances(real, pixels, options, device),
    }
    if options.clip is not None:
        from .features import clip_score

        result |= clip_score(pixels, captions, options.clip, device)
    return result


def _distances(real: np.ndarray, made: np.ndarray, options: EvaluateOptions, device: torch.device) -> dict[str, Any]:
    from .features import feature_distances, inception_distance

    found: dict[str, Any] = {} if options.no_features else feature_distances(real, made, device)
    if options.inception is not None:
        found |= inception_distance(real, made, options.inception, device)
    return found
