"""`humanward label` for benches: the same command, with short leases, no limit on speed, and a clock that is wrong on purpose.

python bench/labelling/server.py RUN PORT LEASE_SECONDS CLOCK_SECONDS
"""

from __future__ import annotations

import functools
import sys
import time


def main() -> int:
    run, port, lease, wrong_by = sys.argv[1:]
    import humanward.web
    from humanward.cli import main as command
    from humanward.feedback import Store

    settings = functools.partial(humanward.web.WebSettings, lease_seconds=float(lease), labels_per_minute=1_000_000)
    humanward.web.WebSettings = settings  # the command imports it from there when it serves
    defaults = Store.__init__.__kwdefaults__
    assert defaults is not None
    defaults["clock"] = lambda: time.time() + float(wrong_by)
    return command(["label", run, "--port", port, "--json"])


if __name__ == "__main__":
    sys.exit(main())
