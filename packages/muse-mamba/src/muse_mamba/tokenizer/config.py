"""What a tokenizer is made of: one frozen dataclass, and named ones. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ..checks import check, check_choice, check_whole, nearest, refuse

Quantizer = Literal["ema", "lfq"]


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Everything that decides a tokenizer's parameters and its tokens.

    Attributes:
        codes: Entries of the codebook; a power of two for `lfq`.
        code_dim: Channels of an entry; `lfq` needs log2(codes).
        channels: Of the first block.
        multipliers: Width of each resolution over `channels`, from the picture inwards. The side of a token is
            2 ** (resolutions - 1) pixels.
        encoder_blocks: Residual blocks per resolution of the encoder.
        decoder_blocks: Of the decoder.
        quantizer: "ema": unit vectors that follow the mean of what is assigned to them; "lfq": signs of every channel.
        decay: Of the moving averages of `ema`.
        revive_below: Moving number of assignments a step below which an entry of `ema` is replaced.
        entropy: Weight of the entropy loss of `lfq`.
        commitment: Weight of the distance between encoder outputs and their entries.
    """

    codes: int = 8192
    code_dim: int = 32
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    encoder_blocks: int = 2
    decoder_blocks: int = 2
    quantizer: Quantizer = "ema"
    decay: float = 0.99
    revive_below: float = 0.03
    entropy: float = 0.1
    commitment: float = 0.25

    def __post_init__(self) -> None:
        """Refuse values that cannot be built. Lists become tuples, so that a configuration read from JSON is equal."""
        if isinstance(self.multipliers, list):
            object.__setattr__(self, "multipliers", tuple(self.multipliers))
        check_whole(self, "codes", least=2)
        check_whole(self, "code_dim", "channels", "encoder_blocks", "decoder_blocks")
        good = bool(self.multipliers) and all(isinstance(m, int) and m >= 1 for m in self.multipliers)
        check(self, "multipliers", "a non-empty tuple of whole numbers of at least 1", good)
        check(self, "channels", "a multiple of 8", self.channels % 8 == 0, "groups of the normalisation have 8 parts")
        check_choice(self, "quantizer", get_args(Quantizer))
        check(self, "decay", "in [0, 1)", 0 <= self.decay < 1)
        if self.quantizer == "lfq":
            bits = self.codes.bit_length() - 1
            check(self, "codes", "a power of two for quantizer='lfq'", self.codes == 1 << bits)
            check(self, "code_dim", f"log2(codes) = {bits} for quantizer='lfq'", self.code_dim == bits)

    @property
    def factor(self) -> int:
        """Side of a token in pixels."""
        return 1 << (len(self.multipliers) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        return {**asdict(self), "multipliers": list(self.multipliers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenizerConfig:
        """Build a configuration from the fields of `to_dict`.

        Raises:
            ValueError: A field is unknown or cannot be built.
        """
        unknown = [name for name in values if name not in cls.__dataclass_fields__]
        if unknown:
            known = cls.__dataclass_fields__
            refuse("TokenizerConfig", "fields", ", ".join(known), unknown[0], nearest(unknown[0], known))
        return cls(**values)


def tokenizer_preset(name: str) -> TokenizerConfig:
    """Return a named tokenizer: `seed` (8192 codes, 128 channels, f = 16), `emoji-64` (f = 4), or `tiny` for tests.

    Raises:
        ValueError: No such name.
    """
    if name not in TOKENIZERS:
        refuse("tokenizer_preset", "name", f"one of {', '.join(TOKENIZERS)}", repr(name), nearest(name, TOKENIZERS))
    return TOKENIZERS[name]


TOKENIZERS: dict[str, TokenizerConfig] = {
    "seed": TokenizerConfig(),
    "emoji-64": TokenizerConfig(
        codes=1024, code_dim=8, channels=32, multipliers=(1, 2, 3), encoder_blocks=1, decoder_blocks=2
    ),
    "tiny": TokenizerConfig(
        codes=32, code_dim=4, channels=8, multipliers=(1, 2, 2), encoder_blocks=1, decoder_blocks=1
    ),
}
