"""UPIDs: written as Proxmox does, read without letting a path through."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BadRequest
from mtunnel_tx.pve.upid import Upid, parse_upid

TEXT = "UPID:pvetest:00005CF0:0012AB34:6B03503F:qmtunnel:100:mig@pve!t1:"
UPID = Upid(
    type="qmtunnel", node="pvetest", pid=0x5CF0, pstart=0x12AB34, starttime=0x6B03503F, id="100", user="mig@pve!t1"
)


class UpidTests(SynchronousTestCase):
    def test_text(self):
        self.assertEqual(UPID.format(), TEXT)
        self.assertEqual(str(UPID), TEXT)
        self.assertEqual(parse_upid(TEXT), UPID)

    def test_log_path(self):
        self.assertEqual(UPID.log_path, f"F/{TEXT}")

    def test_nine_digits_of_uptime(self):
        text = TEXT.replace("0012AB34", "10012AB34")
        self.assertEqual(parse_upid(text).pstart, 0x10012AB34)
        self.assertEqual(parse_upid(text).format(), text)

    def test_refused(self):
        texts = [
            "",
            "UPID",
            TEXT[:-1],
            TEXT + "\n",
            TEXT + "x",
            " " + TEXT,
            TEXT.lower(),
            TEXT.replace("00005CF0", "5CF0"),
            TEXT.replace("00005CF0", "00005cf0"),
            TEXT.replace("0012AB34", "00012AB34"),
            TEXT.replace("6B03503F", "16B03503F"),
            TEXT.replace("pvetest", ".."),
            TEXT.replace("pvetest", "a/b"),
            TEXT.replace(":100:", ":../../x:"),
            TEXT.replace("mig@pve!t1", "../../../etc/passwd"),
            TEXT.replace("mig@pve!t1", "a\0b"),
            TEXT.replace("mig@pve!t1", "a b"),
            TEXT.replace("mig@pve!t1", "a\x1bb"),
            TEXT.replace("mig@pve!t1", "\ud800"),
            TEXT.replace("mig@pve!t1", ""),
            TEXT.replace("mig@pve!t1", "x" * 255),
            TEXT.replace("qmtunnel", "qm/tunnel"),
        ]
        for text in texts:
            self.assertRaises(BadRequest, parse_upid, text)

    @given(st.text() | st.from_regex(r"UPID:[^\n]*:[0-9A-F]{8}:[0-9A-F]{8,9}:[0-9A-F]{8}:qmtunnel:.*:.*:"))
    @settings(deadline=None, max_examples=100)
    def test_what_is_read_is_a_file_name(self, text):
        try:
            upid = parse_upid(text)
        except BadRequest:
            return
        self.assertEqual(upid.format(), text)
        self.assertEqual(upid.log_path.count("/"), 1)

    @given(
        st.builds(
            Upid,
            node=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True),
            pid=st.integers(0, 2**32 - 1),
            pstart=st.integers(0, 2**36 - 1),
            starttime=st.integers(0, 2**32 - 1),
            type=st.just("qmtunnel"),
            id=st.integers(100, 999999999).map(str),
            user=st.from_regex(r"[a-z.@-]{1,20}@pve![a-z0-9]{1,10}", fullmatch=True),
        )
    )
    @settings(deadline=None, max_examples=100)
    def test_round_trip(self, upid):
        self.assertEqual(parse_upid(upid.format()), upid)
