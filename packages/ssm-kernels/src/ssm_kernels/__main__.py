"""`python -m ssm_kernels` is `ssm-kernels`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
