"""`python -m od_qat`, the same as `od-qat`."""

import sys

from od_qat.cli import main

if __name__ == "__main__":
    sys.exit(main())
