"""State-space and window-attention operators for vision, in PyTorch and Triton."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .first_call import warmup
    from .ops.depthwise_conv1d import depthwise_conv1d
    from .ops.depthwise_conv1d_step import depthwise_conv1d_step
    from .ops.layer_norm import layer_norm, rms_norm
    from .ops.linear_scan import linear_scan, linear_scan_bidirectional, linear_scan_step
    from .ops.long_conv1d import long_conv1d
    from .ops.s4_kernel import s4_discretize, s4_kernel
    from .ops.selective_scan import selective_scan
    from .ops.selective_scan_2d import cross_merge, cross_scan, selective_scan_2d
    from .ops.selective_scan_bidirectional import selective_scan_bidirectional
    from .ops.selective_scan_step import selective_scan_step
    from .ops.sliding_window_attention import sliding_window_attention
    from .ops.ssd import ssd, ssd_bidirectional
    from .ops.ssd_step import ssd_step
    from .ops.window_attention import window_attention

__all__ = [
    "__version__",
    "cross_merge",
    "cross_scan",
    "depthwise_conv1d",
    "depthwise_conv1d_step",
    "layer_norm",
    "linear_scan",
    "linear_scan_bidirectional",
    "linear_scan_step",
    "long_conv1d",
    "rms_norm",
    "s4_discretize",
    "s4_kernel",
    "selective_scan",
    "selective_scan_2d",
    "selective_scan_bidirectional",
    "selective_scan_step",
    "sliding_window_attention",
    "ssd",
    "ssd_bidirectional",
    "ssd_step",
    "warmup",
    "window_attention",
]

_HOME = {
    "cross_scan": "selective_scan_2d",
    "cross_merge": "selective_scan_2d",
    "rms_norm": "layer_norm",
    "linear_scan_bidirectional": "linear_scan",
    "linear_scan_step": "linear_scan",
    "ssd_bidirectional": "ssd",
    "s4_discretize": "s4_kernel",
}  # operators that share a folder


def __getattr__(name: str) -> Any:
    """Import a function when it is first used: `import ssm_kernels` alone does not import torch."""
    if name == "__version__":
        return version("ssm-kernels")
    if name in __all__:
        from importlib import import_module

        home = "first_call" if name == "warmup" else f"ops.{_HOME.get(name, name)}"
        value = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
