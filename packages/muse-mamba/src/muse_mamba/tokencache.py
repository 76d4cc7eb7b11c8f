"""Tokens of training pictures, kept on disk for the next run: the same pictures need not be encoded twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .packed import Pictured
from .recipes import TrainConfig
from .tokenizer import VQTokenizer
from .tokens import ENCODED, encode_part, encode_pictures

Kept = tuple[NDArray[np.int32], list[Any]]  # tokens (variants, N, L), and what is known about the pictures


def training_tokens(
    tokenizer: VQTokenizer, pictures: Sequence[Pictured], size: int, cfg: TrainConfig
) -> NDArray[np.int32]:
    """Return the tokens of the versions of training pictures, (variants, N, L), from the cache where they are in it.

    Raises:
        ValueError: The cache's folder cannot be written, or a file in it is damaged.
    """

    def encode() -> Kept:
        return encode_pictures(tokenizer, pictures, size, cfg, variants=cfg.variants), []

    if cfg.token_cache is None:
        return encode()[0]
    digest = _settings(tokenizer, size, cfg)
    for picture in pictures:
        digest.update(picture.name.encode() + str(picture.pixels.shape).encode() + picture.pixels.tobytes())
    return _kept(Path(cfg.token_cache), digest.hexdigest(), encode)[0]


def stream_tokens(
    tokenizer: VQTokenizer, size: int, cfg: TrainConfig, *, verbose: bool
) -> tuple[list[Pictured], NDArray[np.int32]]:
    """Read a set row by row once; return names and captions without pixels, and tokens (variants, N, L).

    Raises:
        ValueError: The set cannot be read or has no captions, or the cache cannot be used.
    """
    from .stream import EMPTY, described_rows, identity, without_pixels

    assert cfg.data is not None
    data = cfg.data

    def encode() -> Kept:
        parts: list[NDArray[np.int32]] = []
        described: list[Any] = []
        for part in described_rows(data, ENCODED, verbose=verbose):
            parts.append(encode_part(tokenizer, part, len(described), size, cfg, variants=cfg.variants))
            described += [[p.name, list(p.captions)] for p in map(without_pixels, part)]
        if not parts:
            raise ValueError(f"data: no row of {data} has a caption; it needs a column text or caption")
        return np.concatenate(parts, axis=1), described

    if cfg.token_cache is None:
        ids, described = encode()
    else:
        digest = _settings(tokenizer, size, cfg)
        digest.update(json.dumps(identity(data)).encode())
        ids, described = _kept(Path(cfg.token_cache), digest.hexdigest(), encode)
    found = [
        Pictured(name=name, captions=tuple(captions), split="train", concept=name, package="", pixels=EMPTY)
        for name, captions in described
    ]
    return found, ids


def _settings(tokenizer: VQTokenizer, size: int, cfg: TrainConfig) -> Any:
    """Begin a name for everything that the tokens depend on."""
    settings = [size, cfg.variants, cfg.flip, cfg.shift, cfg.seed, tokenizer.config.to_dict()]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, x in tokenizer.state_dict().items():
        digest.update(name.encode() + x.detach().cpu().numpy().tobytes())
    return digest


def _kept(folder: Path, key: str, encode: Callable[[], Kept]) -> Kept:
    """Read tokens of a key, or make and write them."""
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    file = folder / f"tokens-{key[:20]}.safetensors"
    try:
        if file.is_file():
            with safe_open(file, framework="np") as opened:
                return opened.get_tensor("ids").astype(np.int32), json.loads(opened.metadata()["described"])
        folder.mkdir(parents=True, exist_ok=True)
        ids, described = encode()
        half = file.with_suffix(f".{os.getpid()}.tmp")  # runs side by side may write the same file
        narrow = ids.astype(np.uint16 if ids.max() < 2**16 else np.int32)
        save_file({"ids": narrow}, half, metadata={"described": json.dumps(described)})
        half.replace(file)
    except (OSError, KeyError, SafetensorError) as error:
        remedy = "remove it, or choose another folder"
        raise ValueError(f"--token_cache: {file} cannot be used: {error}; {remedy}") from error
    return ids, described
