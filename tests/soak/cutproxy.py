"""`python -m tests.soak.cutproxy PORT SEED CUTS_S`: the proxy of `cutter.py` as a process of its own.

Prints its port; reads lines of JSON: {"cuts": true, "outage_s": S} begins a round, {"cuts": false} ends it. Each answer
has what was cut since the one before.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from random import Random

from tests.soak.cutter import Cutter

BEFORE_OUTAGE_S = 10.0
"""Until then each thread of the client has a flow."""


def serve(cutter: Cutter) -> None:
    print(cutter.own_port, flush=True)
    for line in sys.stdin:
        begin_or_end(cutter, **json.loads(line))
        count, cutter.count = cutter.count, type(cutter.count)()
        print(json.dumps(count), flush=True)


def begin_or_end(cutter: Cutter, cuts: bool, outage_s: float = 0) -> None:
    (cutter.cuts.set if cuts else cutter.cuts.clear)()
    if outage_s:
        threading.Thread(target=fail_later, args=(cutter, outage_s), daemon=True).start()


def fail_later(cutter: Cutter, outage_s: float) -> None:
    time.sleep(BEFORE_OUTAGE_S)
    cutter.fail(outage_s)


if __name__ == "__main__":
    serve(Cutter(int(sys.argv[1]), float(sys.argv[3]), Random(sys.argv[2])))
