"""What every relay must do, on real sockets and real TLS, by theme; each relay runs all of it."""

from tests.net.relay_aborts import Aborts
from tests.net.relay_bytes import Bytes, Limits
from tests.net.relay_ends import Ends
from tests.net.relay_frames import Control, Violations
from tests.net.relay_slowness import Slowness
from tests.net.relay_tls import TlsThemes


class RelayTests(Bytes, Limits, Control, Violations, Ends, Aborts, Slowness, TlsThemes):
    """Mix into a TestCase whose setUp makes `self.relays`; `tls` says which transport."""
