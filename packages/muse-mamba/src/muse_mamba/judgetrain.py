"""Training the judge: two linear layers on frozen features, a contrastive loss, in a minute on a CPU."""

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

from .arguments import JudgeOptions
from .devices import pick_device
from .judge import Judge, JudgeConfig, caption_features, picture_features, recall
from .packed import Pictured, load_packed, read_all
from .sources import OPENCLIPART, find_pictures
from .text import TextCache, TextEncoder

SEED, SIZE = 3, 64  # pixels, as the pictures that it judges
CHECKED = 400  # pairs that are left out and looked at
BATCH, NOISE = 512, 0.3
LEAST = 10  # pairs


def judge_command(options: JudgeOptions) -> int:
    """Run `muse-mamba train-judge`."""
    assert options.out is not None
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise ValueError(f"--out: must be a new or empty folder, {options.out} has files in it")
    device = pick_device(options.device)
    avoided = [] if options.against is None else held_out_names(options.against)
    sources = find_pictures(options.data or OPENCLIPART, options.root)
    titled = [p for p in sources if p.captions]
    kept = [p for p in titled if not names_any(p.captions, avoided)]
    if len(kept) < LEAST:
        raise ValueError(f"--data: {len(kept)} pictures with captions of other concepts; give at least {LEAST}")
    print(f"{len(kept)} pictures; {len(titled) - len(kept)} left out, as their words name a held-out concept")
    judge, said = train_judge(read_all(kept, SIZE), options, device)
    judge.save_pretrained(options.out, dtype=torch.float16)
    (options.out / "judge.json").write_text(json.dumps({"left_out": len(titled) - len(kept), **said}, indent=1) + "\n")
    print(f"{options.out}: of {said['checked']} other pairs {said['R@5']:.1%} of the titles among the first 5")
    return 0


def held_out_names(folder: Path) -> list[str]:
    """Return the concepts that a packed folder holds out."""
    pictures, _ = load_packed(folder)
    return sorted({p.concept for p in pictures if p.split == "held-out"})


def names_any(captions: Sequence[str], concepts: Sequence[str]) -> bool:
    """Whether captions have all the words of one of the concepts."""
    words = set(re.findall(r"[a-z]+", " ".join(captions).lower()))
    wanted = (set(re.findall(r"[a-z]+", concept.lower())) for concept in concepts)
    return any(own and own <= words for own in wanted)


def train_judge(
    pictures: Sequence[Pictured], options: JudgeOptions, device: torch.device
) -> tuple[Judge, dict[str, Any]]:
    """Train on pictures with captions; return the judge and how it does on pairs that were left out."""
    torch.manual_seed(SEED)
    order = np.random.default_rng(SEED).permutation(len(pictures))
    pictures = [pictures[i] for i in order]
    seen = picture_features(np.stack([p.pixels for p in pictures]), device)
    encoder = TextEncoder(options.text_encoder, length=32, device=device)
    cache = TextCache.encode(encoder, [c for p in pictures for c in p.captions])
    told = [caption_features(cache, [p.captions[min(k, len(p.captions) - 1)] for p in pictures]) for k in (0, 1)]
    checked = min(CHECKED, len(pictures) // 5)
    config = JudgeConfig(
        image_dim=seen.shape[1],
        text_dim=encoder.channels,
        dim=options.dim,
        encoder=options.text_encoder,
        trained_on=options.data or OPENCLIPART,
        pairs=len(pictures) - checked,
    )
    judge = Judge(config)
    judge.image_mean.copy_(seen[checked:].mean(0))
    judge.image_std.copy_(seen[checked:].std(0) + 1e-3)
    fit(judge, seen[checked:], torch.stack([t[checked:] for t in told]), options)
    judge.eval()
    with torch.no_grad():
        found = recall(judge.of_pictures(seen[:checked]) @ judge.of_captions(told[0][:checked]).t())
    return judge, {"checked": checked, "pairs": config.pairs, "steps": options.steps, **found}


def fit(judge: Judge, seen: Tensor, told: Tensor, options: JudgeOptions) -> None:
    """Minimise the symmetric contrastive loss.

    Args:
        judge: Is changed.
        seen: Features of pictures, (n, 1280).
        told: Features of both captions of each, (2, n, C).
        options: Steps and rates.
    """
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    spread = seen.std(0)
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * 0.5 * (1 + np.cos(np.pi * step / options.steps))
        rows = torch.randperm(len(seen), generator=generator)[:BATCH]
        which = torch.randint(2, (len(rows),), generator=generator)
        noise = torch.randn(len(rows), seen.shape[1], generator=generator) * spread * NOISE
        images = judge.of_pictures(seen[rows] + noise)
        logits = judge.scale.exp().clamp(max=100) * images @ judge.of_captions(told[which, rows]).t()
        right = torch.arange(len(rows))
        loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.t(), right)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
