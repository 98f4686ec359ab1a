"""`python -m ssgan`, the same as the console script `ssgan`."""

import sys

from ssgan.cli import main

if __name__ == "__main__":
    sys.exit(main())
