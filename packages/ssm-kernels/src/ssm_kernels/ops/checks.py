"""One form for every error about an argument: `<op>: <argument> must be <wanted>, got <found>; <what to do>`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def refuse(op: str, argument: str, wanted: str, found: object, remedy: str) -> NoReturn:
    """Raise the ValueError that names the argument, what it must be, what it is, and what to do."""
    raise ValueError(f"{op}: {argument} must be {wanted}, got {found}; {remedy}")


def check_floating(op: str, argument: str, x: Tensor) -> None:
    """Refuse integers, booleans and complex numbers."""
    if x.dtype not in FLOATING:
        found = str(x.dtype).removeprefix("torch.")
        refuse(op, argument, "float32, bfloat16, float16 or float64", found, f"convert it with {argument}.float()")


def check_device(op: str, argument: str, x: Tensor, like: Tensor) -> None:
    """Refuse a tensor on another device than the first argument."""
    if x.device != like.device:
        refuse(op, argument, f"on {like.device} like the first argument", x.device, f"move it with {argument}.to(...)")


def check_shape(op: str, argument: str, x: Tensor, shapes: Sequence[Sequence[int]], legend: str, remedy: str) -> None:
    """Refuse a tensor whose shape is none of `shapes`; `legend` spells them in letters, such as "(D, N)"."""
    found = tuple(x.shape)
    if not any(found == tuple(shape) for shape in shapes):
        wanted = " or ".join(str(tuple(shape)) for shape in shapes)
        refuse(op, argument, f"{legend} = {wanted}", found, remedy)
