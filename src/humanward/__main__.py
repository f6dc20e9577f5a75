"""``python -m humanward`` is the command ``humanward``."""

from __future__ import annotations

import sys

from humanward.cli import main

if __name__ == "__main__":
    sys.exit(main())
