"""selective_scan over a grid of lengths and widths, smallest first, so that a run cut short has a whole corner.

B batch, L length, D channels, N state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.selective_scan import selective_scan
from .case import DTYPES, LIMITS, PEER_SLACK, Tensors, cotangent, worst
from .inputs import Maker, scan_tensors
from .operators import bound
from .peers import Peers, scan_peer
from .roofline import Rates
from .rows import Row
from .runner import measured, time_passes

OP, PEER = "selective_scan", "mamba_ssm"
LARGEST = 2**31  # B * D * L
STATES = (16, 1)
LENGTHS = tuple(4**k for k in range(2, 9))  # 16 .. 65536
WIDTHS = tuple(4**k for k in range(4, 10))  # B * D, 256 .. 262144
CORNERS = ((262144, 8192), (32768, 65536))  # (B * D, L) of the largest size, which powers of four miss
CHANNELS = 1024  # D, where B * D is not smaller
CHECKED = 4  # channels at either end of the rows at either end of the batch
REPEAT, BUDGET_S = 10, 0.4


def grid(quick: bool = False) -> list[tuple[int, ...]]:
    """Return every (B, D, L, N), smallest B * D * L first; a handful of tiny ones for a quick run."""
    lengths, widths, corners = (LENGTHS, WIDTHS, CORNERS) if not quick else ((4, 16, 64), (8, 16), ())
    pairs = [(width, length) for width in widths for length in lengths if width * length <= LARGEST]
    sizes = []
    for width, length in sorted([*pairs, *corners], key=lambda pair: pair[0] * pair[1]):
        channels = min(width, CHANNELS if not quick else 8)
        sizes += [(width // channels, channels, length, state) for state in STATES]
    return sizes


def run_point(
    sizes: tuple[int, ...],
    dtype: str,
    device: torch.device,
    rates: Rates | None,
    peers: Peers,
    impls: Sequence[str],
) -> Iterator[Row]:
    """Check and time one size.

    The check looks at the first and last channels of the first and last row, where a wrong offset would show, along
    their whole length: output and the gradients of x, dt and z against float64. A result that is off has an
    error_ratio and no times.

    Args:
        sizes: (B, D, L, N).
        dtype: Of the sequences.
        device: Where it runs.
        rates: Of the device, for the lower bound.
        peers: What can be called here.
        impls: Of ours, and "mamba_ssm"; a failure of that is printed, and its row left out.
    """
    batch, channels, length, state = sizes
    inputs = scan_tensors(Maker(device, DTYPES[dtype]), batch, length, channels, state)
    against = cotangent(inputs["x"])
    truth = _truth(inputs, against)
    floor = bound(OP, sizes, dtype, rates)
    kept: dict[str, Any] = {"op": OP, "shape": sizes, "dtype": dtype, "source": "run"}
    for impl in impls:
        if impl != PEER:
            seen = _check_and_time(_ours(impl), lambda y: y, inputs, against, truth, LIMITS[dtype])
            yield Row(**kept, impl=impl, **seen, floor_ms=None if seen["fwd_ms"] is None else floor)
    if PEER not in impls or peers.scan is None:
        return
    peer = scan_peer(peers.scan)
    inputs = {name: _take(inputs, name) for name in list(inputs)}  # its layout replaces ours, so it comes last
    against = against.transpose(1, 2).contiguous()
    try:
        seen = _check_and_time(peer.call, peer.restore, inputs, against, truth, LIMITS[dtype] * PEER_SLACK)
    except RuntimeError as error:
        print(f"{OP} {sizes} {dtype} {PEER}: {error}; left out", flush=True)
        return
    yield Row(**kept, impl=PEER, **seen, floor_ms=None if seen["fwd_ms"] is None else floor)


def _check_and_time(
    call: Callable[[Tensors], Tensor],
    restore: Callable[[Tensor], Tensor],
    inputs: Tensors,
    against: Tensor,
    truth: Tensors,
    limit: float,
) -> dict[str, Any]:
    """Return the measured fields of a row, without times if the result is off."""
    error = worst(_result(call, restore, inputs, against), truth)
    if error > limit:
        return {"fwd_ms": None, "bwd_ms": None, "error_ratio": error}
    passes = time_passes(call, inputs, lambda y: against, repeat=REPEAT, budget_s=BUDGET_S)
    return {**measured(passes), "error_ratio": error}


def _ours(impl: Any) -> Callable[[Tensors], Tensor]:
    return lambda x: selective_scan(**x, dt_softplus=True, impl=impl)


def _take(inputs: Tensors, name: str) -> Tensor:
    """Bring one tensor into mamba_ssm's layout and drop ours: at the largest size there is no room for both."""
    x = inputs.pop(name)
    return x.transpose(1, 2).contiguous() if x.dim() == 3 else x


def _ends(size: int, count: int, device: torch.device) -> Tensor:
    """Return the first and last `count` indices."""
    return torch.tensor(sorted({*range(min(count, size)), *range(max(0, size - count), size)}), device=device)


def _sample(x: Tensor) -> Tensor:
    """Cut (B, L, D) down to the rows and channels that are checked, in float64."""
    rows, channels = _ends(x.shape[0], 1, x.device), _ends(x.shape[2], CHECKED, x.device)
    return x[rows][:, :, channels].double()


def _truth(inputs: Tensors, against: Tensor) -> Tensors:
    """Compute output and gradients of the checked rows and channels in float64."""
    channels = _ends(inputs["A"].shape[0], CHECKED, against.device)
    rows = _ends(against.shape[0], 1, against.device)
    own: Tensors = {name: inputs[name][channels].double() for name in ("A", "D", "dt_bias")}
    own |= {name: inputs[name][rows].double() for name in ("B", "C")}
    leaves: Tensors = {name: _sample(inputs[name]).requires_grad_() for name in ("x", "dt", "z")}
    y = selective_scan(**own, **leaves, dt_softplus=True, impl="torch")
    return _named(y, torch.autograd.grad(y, list(leaves.values()), _sample(against)))


def _result(
    call: Callable[[Tensors], Tensor], restore: Callable[[Tensor], Tensor], inputs: Tensors, against: Tensor
) -> Tensors:
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y = call(leaves)
    grads = torch.autograd.grad(y, [leaves[name] for name in ("x", "dt", "z")], against)
    return _named(_sample(restore(y.detach())), tuple(_sample(restore(g)) for g in grads))


def _named(y: Tensor, grads: Sequence[Tensor]) -> Tensors:
    named = zip(("x", "dt", "z"), grads, strict=True)
    return {"output": y.detach(), **{f"gradient of {name}": g for name, g in named}}
