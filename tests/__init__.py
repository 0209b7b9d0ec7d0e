"""The tests. Each one ends, whatever it waits for: see limits.py and patience.py."""

import sys

if "twisted.trial.unittest" in sys.modules:  # not in a program of this package that a test started
    from tests.limits import limit_every_test

    limit_every_test()
