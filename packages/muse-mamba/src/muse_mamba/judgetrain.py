"""Fitting the judge: ridge regression from pictures to captions on frozen features, in closed form."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments_measure import JudgeOptions
from .data import square
from .devices import pick_device
from .features import picture_features
from .judge import Judge, JudgeConfig, caption_features, recall
from .packed import Pictured, is_packed, load_packed, read_all
from .sources import OPENCLIPART, find_pictures
from .text import TextCache, TextEncoder

SEED, SIZE = 3, 64  # pixels, as the pictures that it judges
CHECKED, LEAST = 200, 10  # concepts that are left out and looked at; pairs to begin with


def judge_command(options: JudgeOptions) -> int:
    """Run `muse-mamba train-judge`."""
    assert options.out is not None
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise ValueError(f"--out: must be a new or empty folder, {options.out} has files in it")
    device = pick_device(options.device)
    sources = (options.data or OPENCLIPART).split(",")
    packed = [Path(data) for data in sources if is_packed(data)]
    avoided = held_out_names([*packed, *([options.against] if options.against else [])])
    pairs: list[Pictured] = []
    left_out = 0
    for data in sources:
        if is_packed(data):
            pairs += [p for p in load_packed(Path(data))[0] if p.split != "held-out" and p.captions]
            continue
        titled = [p for p in find_pictures(data, options.root) if p.captions]
        kept = [p for p in titled if not names_any(p.captions, avoided)]
        left_out += len(titled) - len(kept)
        pairs += read_all(kept, SIZE) if kept else []
    print(f"{len(pairs)} pairs; {left_out} left out, as their words name a held-out concept")
    if len(pairs) < LEAST:
        raise ValueError(f"--data: {len(pairs)} pictures with captions of other concepts; give at least {LEAST}")
    judge, said = train_judge(pairs, options, device)
    judge.save_pretrained(options.out, dtype=torch.float16)
    (options.out / "judge.json").write_text(json.dumps({"left_out": left_out, **said}, indent=1) + "\n")
    print(f"{options.out}: of {said['checked']} other concepts {said['R@5']:.1%} among the first 5")
    return 0


def held_out_names(folders: Sequence[Path]) -> list[str]:
    """Return the concepts that packed folders hold out."""
    pictures = [p for folder in folders for p in load_packed(folder)[0]]
    return sorted({p.concept for p in pictures if p.split == "held-out"})


def names_any(captions: Sequence[str], concepts: Sequence[str]) -> bool:
    """Whether captions have all the words of one of the concepts."""
    words = set(re.findall(r"[a-z]+", " ".join(captions).lower()))
    wanted = (set(re.findall(r"[a-z]+", concept.lower())) for concept in concepts)
    return any(own and own <= words for own in wanted)


def train_judge(
    pictures: Sequence[Pictured], options: JudgeOptions, device: torch.device
) -> tuple[Judge, dict[str, Any]]:
    """Fit to pictures with captions; return the judge and how it does on concepts that were left out."""
    concepts = sorted({p.concept for p in pictures})
    order = np.random.default_rng(SEED).permutation(len(concepts))
    aside = {concepts[i] for i in order[: min(CHECKED, len(concepts) // 5)]}
    features = picture_features(np.stack([square(p.pixels, SIZE) for p in pictures]), device)
    encoder = TextEncoder(options.text_encoder, length=32, device=device)
    cache = TextCache.encode(encoder, [c for p in pictures for c in p.captions])
    first = caption_features(cache, [p.captions[0] for p in pictures])
    other = caption_features(cache, [p.captions[min(1, len(p.captions) - 1)] for p in pictures])
    used = torch.tensor([p.concept not in aside for p in pictures])
    config = JudgeConfig(
        image_dim=features.shape[1],
        text_dim=encoder.channels,
        dim=min(options.dim, encoder.channels),
        encoder=options.text_encoder,
        trained_on=", ".join(sorted({p.package or "pictures of a folder" for p in pictures})),
        pairs=int(used.sum()),
    )
    judge = Judge(config)
    told = (F.normalize(first, dim=-1) + F.normalize(other, dim=-1)) / 2
    fit(judge, features[used], told[used], options.ridge)
    checked = list({p.concept: i for i, p in enumerate(pictures) if p.concept in aside}.values())
    found = recall(judge.of_pictures(features[checked]) @ judge.of_captions(first[checked]).t())
    return judge, {"checked": len(checked), "pairs": config.pairs, "ridge": options.ridge, "dim": config.dim, **found}


def fit(judge: Judge, seen: Tensor, told: Tensor, ridge: float) -> None:
    """Solve the least squares problem with a penalty, and keep the directions in which its predictions vary most.

    Args:
        judge: Is changed.
        seen: Features of pictures, (n, image_dim).
        told: Features of captions, (n, text_dim).
        ridge: Weight of the penalty on the squared matrix.
    """
    judge.image_mean.copy_(seen.mean(0))
    judge.image_std.copy_(seen.std(0) + 1e-3)
    judge.text_mean.copy_(told.mean(0))
    z = ((seen - judge.image_mean) / judge.image_std).double()
    y = (told - judge.text_mean).double()
    gram = z.t() @ z
    matrix = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), z.t() @ y)
    spread = matrix.t() @ gram @ matrix  # covariance of the predictions, times n
    directions = torch.linalg.eigh(spread).eigenvectors[:, -judge.config.dim :]
    judge.image.copy_(matrix @ directions)
    judge.text.copy_(directions)
