"""What the tests of operators share: parity by error ratio, input makers, NaN-poisoned buffers."""

from .inputs import Scan2DInputs, ScanInputs, scan_2d_inputs, scan_inputs
from .linear import LinearInputs, linear_inputs
from .parity import assert_as_accurate, error_ratio
from .poison import poisoned_buffers

__all__ = [
    "LinearInputs",
    "Scan2DInputs",
    "ScanInputs",
    "assert_as_accurate",
    "error_ratio",
    "linear_inputs",
    "poisoned_buffers",
    "scan_2d_inputs",
    "scan_inputs",
]
