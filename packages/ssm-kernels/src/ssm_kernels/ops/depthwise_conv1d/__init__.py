"""Short depthwise convolution along a sequence, channels last: the convolution in front of a selective scan."""

from .api import depthwise_conv1d

__all__ = ["depthwise_conv1d"]
