"""Sentences in, pictures out: text encoder, token model, scheduler and tokenizer as one diffusers pipeline."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Tensor

from .checks import refuse
from .config import why_not_upscaler
from .decoding import DecodeOptions, decode
from .model import TokenModel
from .scheduler import MuseMambaScheduler
from .text import MINILM, TextEncoder
from .tokenizer import VQTokenizer
from .weights import shipped_model, shipped_tokenizer

INDEX = "model_index.json"
PARTS = ("model", "tokenizer", "scheduler")


@dataclass
class MuseMambaOutput(BaseOutput):
    """`images`: PIL pictures. `ids`: their tokens, (n, h, w)."""

    images: list[Image.Image]
    ids: Tensor


class MuseMambaPipeline(DiffusionPipeline):
    """Text to image by decoding tokens in parallel.

    Args:
        model: Predicts hidden tokens.
        tokenizer: Turns tokens into pictures.
        scheduler: Decides what is drawn and hidden again.
        text_encoder: Name or folder of the text encoder; it is loaded when the first sentence comes.
    """

    _optional_components: ClassVar[list[str]] = []

    def __init__(
        self,
        model: TokenModel,
        tokenizer: VQTokenizer,
        scheduler: MuseMambaScheduler | None = None,
        text_encoder: str = MINILM,
    ) -> None:
        super().__init__()
        if tokenizer.config.codes != model.config.vocab:
            found = f"{model.config.vocab} and {tokenizer.config.codes}"
            refuse("MuseMambaPipeline", "codes of model and tokenizer", "the same", found, "use what belongs together")
        self.model, self.tokenizer = model, tokenizer
        self.scheduler = scheduler or MuseMambaScheduler(mask_token_id=model.config.vocab)
        self.register_modules(model=model, tokenizer=tokenizer, scheduler=self.scheduler)
        self.text_encoder_name = text_encoder
        self._encoder: TextEncoder | None = None

    @classmethod
    def shipped(
        cls, model: str | Path | None = None, tokenizer: str | Path | None = None, text_encoder: str = MINILM
    ) -> MuseMambaPipeline:
        """Build the pipeline from the weights that ship, or from runs' model/ folders.

        Raises:
            ValueError: Weights are missing; the message says how to make them.
        """
        folders = Path(model) if model else shipped_model(), Path(tokenizer) if tokenizer else shipped_tokenizer()
        return cls(TokenModel.from_pretrained(folders[0]), VQTokenizer.from_pretrained(folders[1]), None, text_encoder)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # no options
        self, save_directory: str | os.PathLike[str]
    ) -> None:
        """Write all parts into one folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder / "model")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.scheduler.save_pretrained(folder / "scheduler")
        index = {"_class_name": type(self).__name__, "text_encoder": self.text_encoder_name}
        (folder / INDEX).write_text(json.dumps(index | {p: ["muse_mamba", p] for p in PARTS}, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> MuseMambaPipeline:
        """Read a folder of `save_pretrained`.

        Raises:
            ValueError: It is none.
        """
        folder = Path(pretrained_model_name_or_path)
        try:
            index = json.loads((folder / INDEX).read_text())
            encoder = index["text_encoder"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"MuseMambaPipeline: {folder} holds no pipeline: {error}; check the path") from error
        scheduler = cast(MuseMambaScheduler, MuseMambaScheduler.from_pretrained(folder / "scheduler"))
        model = TokenModel.from_pretrained(folder / "model")
        return cls(model, VQTokenizer.from_pretrained(folder / "tokenizer"), scheduler, encoder)

    def upscaled_by(self, model: TokenModel) -> MuseMambaPipeline:
        """Return the pipeline of a super-resolution model, which takes this one's `ids` as `cond_ids`.

        Tokenizer, scheduler and device are this one's; so is the text encoder, where it is loaded and cuts alike.

        Raises:
            ValueError: The model was made for other tokens, codes or text.
        """
        if reason := why_not_upscaler(self.model.config, model.config):
            raise ValueError(f"MuseMambaPipeline: model {reason}")
        larger = MuseMambaPipeline(model, self.tokenizer, self.scheduler, self.text_encoder_name).to(self.device)
        if model.config.text_length == self.model.config.text_length:
            larger._encoder = self._encoder
        return larger

    def encode(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return states (B, T, Ct) and mask (B, T) of sentences, on the pipeline's device.

        What is behind the model's last text token is left out, with a warning.

        Raises:
            ValueError: A sentence is empty.
        """
        for sentence in sentences:
            if not sentence.strip():
                refuse("MuseMambaPipeline", "prompt", "a sentence", repr(sentence), "say what shall be drawn")
        if self._encoder is None:
            length = self.model.config.text_length
            self._encoder = TextEncoder(self.text_encoder_name, length=length, device=self.device)
            if self._encoder.channels != self.model.config.text_dim:
                wanted = f"one of width {self.model.config.text_dim}"
                found = f"{self.text_encoder_name} of width {self._encoder.channels}"
                refuse("MuseMambaPipeline", "text_encoder", wanted, found, "use the one that it was trained with")
        before = self._encoder.cut
        found = self._encoder.encode(sentences)
        if cut := self._encoder.cut - before:
            logging.getLogger(__name__).warning(
                "prompt: %d of %d have more than %d tokens; the rest of them is not read; make them shorter",
                cut,
                len(sentences),
                self._encoder.length,
            )
        return found.states.to(self.device), found.mask.to(self.device)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 16,
        guidance_scale: float = 4.0,
        guidance_ramp: bool = False,
        temperature: tuple[float, float] = (2.0, 0.0),
        generator: torch.Generator | None = None,
        ids: Tensor | None = None,
        cond_ids: Tensor | None = None,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> MuseMambaOutput:
        """Draw pictures.

        Args:
            prompt: One sentence or several.
            negative_prompt: What is not wanted.
            num_images_per_prompt: Pictures of each sentence.
            num_inference_steps: Passes of the model.
            guidance_scale: How much the sentence counts; 1 asks no second opinion.
            guidance_ramp: Let it rise from 1.
            temperature: Of the noise on the confidence, first and last step.
            generator: Where random numbers come from; on any device.
            ids: Tokens to begin with, (n, L), hidden ones are filled: inpainting and variations.
            cond_ids: Tokens of smaller pictures, (n, h, w) as another pipeline gives them: what a super-resolution
                model begins with.
            callback: Is told every step, from 0, and its tokens (n, L).

        Raises:
            ValueError: A sentence is empty, a number has no meaning, or a super-resolution model has no `cond_ids`.
        """
        if self.model.config.cond_vocab and cond_ids is None:
            remedy = "draw small ones first and hand their `ids` on, as docs/drawing.md shows"
            refuse("MuseMambaPipeline", "cond_ids", "tokens of smaller pictures for this model", "none", remedy)
        sentences = [prompt] if isinstance(prompt, str) else list(prompt)
        self.scheduler.set_timesteps(num_inference_steps, temperature)
        from dataclasses import replace

        options: DecodeOptions = replace(self.scheduler.options(), guidance=guidance_scale, guidance_ramp=guidance_ramp)
        text, mask = (x.repeat_interleave(num_images_per_prompt, 0) for x in self.encode(sentences))
        negative = None
        if negative_prompt is not None:
            negative = tuple(x.expand(len(text), *x.shape[1:]) for x in self.encode([negative_prompt]))
        with self.progress_bar(total=num_inference_steps) as bar:  # pyright: ignore[reportCallIssue]  # untyped there

            def told(step: int, tokens: Tensor) -> None:
                bar.update()
                if callback is not None:
                    callback(step, tokens)

            made = decode(
                self.model,
                text,
                mask,
                options,
                ids=None if ids is None else ids.to(text.device),
                negative=cast("tuple[Tensor, Tensor] | None", negative),
                cond_ids=None if cond_ids is None else cond_ids.to(text.device).flatten(1),
                generator=generator,
                callback=told,
            )
        grid = made.unflatten(1, self.model.config.grid)
        return MuseMambaOutput(images=to_images(self.tokenizer.decode(grid)), ids=grid)


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Return PIL pictures of (n, 3, H, W) in [0, 1]."""
    pixels = (pictures * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(p)) for p in pixels]
