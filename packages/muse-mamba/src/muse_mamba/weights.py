"""Where weights are: those that come with the package, and folders that are given. No torch here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .checks import refuse
from .config import ModelConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SHIPPED = Path(__file__).parent / "weights"
TOKENIZER_NAME, MODEL_NAME, JUDGE_NAME = "emoji-64", "ship", "judge"
MODEL_KIND = "token-model"  # what config.json of a token model says


def shipped_tokenizer() -> Path:
    """Return the folder of the tokenizer that ships.

    Raises:
        ValueError: None does.
    """
    return _shipped(TOKENIZER_NAME, "tokenizer", "--tokenizer", "muse-mamba train-tokenizer emoji-64 --out runs/tok")


def shipped_model() -> Path:
    """Return the folder of the token model that ships.

    Raises:
        ValueError: None does.
    """
    return _shipped(MODEL_NAME, "token model", "--model", "muse-mamba train ship --out runs/model")


def find_model(folder: Path | None) -> Path:
    """Return the folder of the token model that is asked for.

    Raises:
        ValueError: It holds none, or none ships.
    """
    return shipped_model() if folder is None else _given(folder, "--model")


def find_upscaler(folder: Path) -> Path:
    """Return the folder of the super-resolution model that is asked for.

    Raises:
        ValueError: It holds no weights.
    """
    return _given(folder, "--upscaler")


def find_tokenizer(folder: Path | None) -> Path:
    """Return the folder of the tokenizer that is asked for.

    Raises:
        ValueError: It holds none, or none ships.
    """
    return shipped_tokenizer() if folder is None else _given(folder, "--tokenizer")


def find_judge(folder: Path | None) -> Path | None:
    """Return the folder of the judge that is asked for, or of the one that ships; None where none does.

    Raises:
        ValueError: The folder holds none.
    """
    if folder is not None:
        return _given(folder, "--judge")
    return SHIPPED / JUDGE_NAME if (SHIPPED / JUDGE_NAME / WEIGHTS).is_file() else None


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """Read config.json of a network's folder.

    Raises:
        ValueError: It is missing, is no JSON, or belongs to another kind of network.
    """
    file = folder / CONFIG
    if not file.is_file():
        wanted = f"a folder with {CONFIG} and {WEIGHTS}"
        refuse("from_pretrained", "folder", wanted, str(folder), "give a run's model/ folder")
    try:
        values = json.loads(file.read_text())
        found = values.pop("kind", None)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"from_pretrained: {file} is no configuration: {error}; save the network again") from error
    if found != kind:
        refuse("from_pretrained", "folder", f"one that holds a {kind}", f"{folder} with {found}", "check the path")
    return values


def read_model_config(folder: Path) -> ModelConfig:
    """Read what a token model is made of, without its weights.

    Raises:
        ValueError: The folder holds none.
    """
    return ModelConfig.from_dict(read_config(folder, MODEL_KIND))


def _given(folder: Path, option: str) -> Path:
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{option}: must be a folder with {WEIGHTS}, got {folder}; give a run's model/ folder")
    return folder


def _shipped(name: str, what: str, option: str, command: str) -> Path:
    folder = SHIPPED / name
    if not (folder / WEIGHTS).is_file():
        remedy = f"train one with: {command}, and give its model/ folder by {option}"
        raise ValueError(f"no trained {what} ships with this version; {remedy}")
    return folder
