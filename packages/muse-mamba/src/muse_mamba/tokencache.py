"""Tokens of training pictures, kept on disk for the next run: the same pictures need not be encoded twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .packed import Pictured
from .recipes import TrainConfig
from .tokenizer import VQTokenizer
from .tokens import encode_pictures


def training_tokens(
    tokenizer: VQTokenizer, pictures: Sequence[Pictured], size: int, cfg: TrainConfig
) -> NDArray[np.int32]:
    """Return the tokens of the versions of training pictures, (variants, N, L), from the cache where they are in it.

    Raises:
        ValueError: The cache's folder cannot be written, or a file in it is damaged.
    """
    if cfg.token_cache is None:
        return encode_pictures(tokenizer, pictures, size, cfg, variants=cfg.variants)
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file

    file = Path(cfg.token_cache) / f"tokens-{key_of(tokenizer, pictures, size, cfg)}.safetensors"
    try:
        if file.is_file():
            return load_file(file)["ids"].astype(np.int32)
        file.parent.mkdir(parents=True, exist_ok=True)
        ids = encode_pictures(tokenizer, pictures, size, cfg, variants=cfg.variants)
        half = file.with_suffix(f".{os.getpid()}.tmp")  # runs side by side may write the same file
        save_file({"ids": ids.astype(np.uint16 if ids.max() < 2**16 else np.int32)}, half)
        half.replace(file)
    except (OSError, KeyError, SafetensorError) as error:
        remedy = "remove it, or choose another folder"
        raise ValueError(f"--token_cache: {file} cannot be used: {error}; {remedy}") from error
    return ids


def key_of(tokenizer: VQTokenizer, pictures: Sequence[Pictured], size: int, cfg: TrainConfig) -> str:
    """Return a name for everything that the tokens depend on."""
    settings = [size, cfg.variants, cfg.flip, cfg.shift, cfg.seed, tokenizer.config.to_dict()]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, x in tokenizer.state_dict().items():
        digest.update(name.encode() + x.detach().cpu().numpy().tobytes())
    for picture in pictures:
        digest.update(picture.name.encode() + str(picture.pixels.shape).encode() + picture.pixels.tobytes())
    return digest.hexdigest()[:20]
