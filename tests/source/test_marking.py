"""The source's lock, and when it stays."""

from mtunnel_tx.errors import BackendFailed, WrongState
from mtunnel_tx.source.marking import marked
from tests.source.case import CONF, SourceCase


class MarkTest(SourceCase):
    def lock(self):
        return self.guests.read(100).lock

    async def test_it_goes(self):
        async with marked(self.guests, 100, self.guests.read(100)):
            self.assertEqual(self.lock(), "migrate")
        self.assertEqual(self.conf_file.read_text(), CONF)

    async def test_it_goes_after_a_failure(self):
        with self.assertRaises(BackendFailed):
            async with marked(self.guests, 100, self.guests.read(100)):
                raise BackendFailed("no")
        self.assertEqual(self.conf_file.read_text(), CONF)

    async def test_it_stays_where_nobody_knows_whose_the_vm_is(self):
        with self.assertRaises(BackendFailed):
            async with marked(self.guests, 100, self.guests.read(100)) as mark:
                mark.stays = True
                raise BackendFailed("no")
        self.assertEqual(self.lock(), "migrate")

    async def test_a_changed_config_is_left_alone(self):
        expected = self.guests.read(100)
        self.conf_file.write_text(CONF + "tags: x\n")
        with self.assertRaises(WrongState):
            async with marked(self.guests, 100, expected):
                self.fail("it was changed")
        self.assertEqual(self.conf_file.read_text(), CONF + "tags: x\n")
