"""One operator at one size, the other implementations of it, and whether a result is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..testing.parity import error_ratio

Tensors = dict[str, Any]  # tensors by name; Any, so that they can be passed on as keyword arguments

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest error of output or gradients that is still reported: two roundings of a half-precision result. A broken
# kernel is off by far more; accuracy to the last rounding is what the tests check.
LIMITS = {"float32": 1e-4, "bfloat16": 2 * 2.0**-7, "float16": 2 * 2.0**-10}
PEER_SLACK = 4.0  # others may round more often than we do; a peer that computes something else is off by far more


@dataclass(frozen=True)
class Peer:
    """Another implementation of the same computation, in the layout that suits it.

    Attributes:
        call: Computes the output from its own inputs. This is what is timed.
        prepare: Makes its inputs from ours, under the same names, differentiably.
        restore: Brings its output into our layout, differentiably.
        dtypes: Of its inputs where they differ from ours.
        differentiable: Whether it has a backward pass; if not, its output alone is checked, and timed.
    """

    call: Callable[[Tensors], Tensor]
    prepare: Callable[[Tensors], Tensors] = dict
    restore: Callable[[Tensor], Tensor] = lambda y: y
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    differentiable: bool = True

    def inputs(self, ours: Tensors) -> Tensors:
        """Return fresh leaves in its own layout and dtypes."""
        made = self.prepare({name: x.detach() for name, x in ours.items()})
        return {name: x.to(self.dtypes.get(name, ours[name].dtype)).contiguous() for name, x in made.items()}


@dataclass
class Case:
    """One operator at one size.

    Args:
        op: Its name.
        shape: As `shapes.LEGEND` spells it.
        dtype: Of the sequences: "bfloat16", "float16" or "float32".
        inputs: Every tensor that gets a gradient, by name.
        call: Computes the output from the inputs and the name of an implementation.
        floor_ms: Lower bound of the forward pass on this GPU; None if it is not known.
        triton: The operator has a Triton kernel, which is timed on a GPU.
        peers: Other implementations to check and time, by name.
        slack: Factor of `LIMITS`: above 1 for a chain of operators, each of which rounds its result.
    """

    op: str
    shape: tuple[int, ...]
    dtype: str
    inputs: Tensors
    call: Callable[[Tensors, Any], Tensor]
    floor_ms: float | None = None
    triton: bool = True
    peers: dict[str, Any] = field(default_factory=dict)
    slack: float = 1.0

    def limit(self, impl: str) -> float:
        """Return the largest error ratio with which an implementation is timed."""
        return LIMITS[self.dtype] * (max(self.slack, PEER_SLACK) if impl in self.peers else self.slack)


def cotangent(y: Tensor) -> Tensor:
    """Draw what the output's gradient is taken against; it follows from shape, dtype and device alone."""
    generator = torch.Generator(y.device).manual_seed(1)
    return torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)


def _with_gradients(leaves: Tensors, function: Callable[[Tensors], Tensor], dtype: torch.dtype) -> Tensors:
    """Return the output and all gradients, for a cotangent that is drawn in `dtype`."""
    y = function(leaves)
    against = cotangent(y.detach().to(dtype)).to(y.dtype)
    grads = torch.autograd.grad(y, list(leaves.values()), against)
    return {"output": y.detach(), **{f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}}


def truth_of(case: Case) -> Tensors:
    """Compute output and gradients in float64 on the case's own (rounded) inputs."""
    leaves = {name: x.detach().double().requires_grad_() for name, x in case.inputs.items()}
    return _with_gradients(leaves, lambda x: case.call(x, "torch"), DTYPES[case.dtype])


def error_of(case: Case, impl: str, truth: Tensors) -> float:
    """Return the largest error ratio of output and gradients; infinity where something is not finite."""
    kind = DTYPES[case.dtype]
    if impl not in case.peers:
        leaves = {name: x.detach().requires_grad_() for name, x in case.inputs.items()}
        return worst(_with_gradients(leaves, lambda x: case.call(x, impl), kind), truth)
    peer = case.peers[impl]
    if not peer.differentiable:
        return worst({"output": peer.restore(peer.call(peer.inputs(case.inputs)))}, {"output": truth["output"]})
    # the way to and from the peer's layout is taken in float64: sums over shared keys or bias rows add no rounding
    leaves = {name: x.detach().double().requires_grad_() for name, x in case.inputs.items()}

    def through(x: Tensors) -> Tensor:
        own = {name: t.to(peer.dtypes.get(name, case.inputs[name].dtype)) for name, t in peer.prepare(x).items()}
        return peer.restore(peer.call({name: t.contiguous() for name, t in own.items()}))

    return worst(_with_gradients(leaves, through, kind), truth)


def worst(result: Tensors, truth: Tensors) -> float:
    """Return the largest error ratio of any tensor; infinity where something is not finite."""
    finite = all(bool(torch.isfinite(x).all()) for x in result.values())
    return max(error_ratio(result[name], truth[name]) for name in truth) if finite else float("inf")
