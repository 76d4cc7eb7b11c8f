"""One step of the short depthwise convolution with its state passed in and out: token by token generation."""

from .api import depthwise_conv1d_step

__all__ = ["depthwise_conv1d_step"]
