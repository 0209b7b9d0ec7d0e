"""Writes the table of docs/machines.md anew."""

from tests.machines.table import BEGIN, END, rendered
from tests.machines.test_same import DOCUMENT

text = DOCUMENT.read_text("utf-8")
before, _, rest = text.partition(BEGIN)
DOCUMENT.write_text(before + rendered() + rest.partition(END)[2], "utf-8")
