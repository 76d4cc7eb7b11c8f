"""The weights that come with the package."""

from __future__ import annotations

from pathlib import Path

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SHIPPED = Path(__file__).parent / "weights"
TOKENIZER_NAME, MODEL_NAME, JUDGE_NAME = "emoji-64", "ship", "judge"


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
