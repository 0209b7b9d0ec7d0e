"""What every relay must do, on real sockets and real TLS, by theme; each relay runs all of it."""

from tests.stream.relay_aborts import Aborts
from tests.stream.relay_bytes import Bytes, Limits
from tests.stream.relay_carriers import Carriers
from tests.stream.relay_ends import Ends
from tests.stream.relay_frames import Control, Violations
from tests.stream.relay_resumption import OwnFlows, Resumption
from tests.stream.relay_slowness import Slowness
from tests.stream.relay_tls import TlsThemes


class RelayTests(Bytes, Limits, Carriers, Resumption, OwnFlows, Control, Violations, Ends, Aborts, Slowness, TlsThemes):
    """Mix into a TestCase whose setUp makes `self.relay`; `tls` says which transport."""
