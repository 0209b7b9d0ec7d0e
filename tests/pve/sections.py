"""Section config as a text again, for properties."""

from collections.abc import Iterable

from mtunnel_tx.pve.sections import Section


def format_sections(sections: Iterable[Section]) -> str:
    """The sections in this order, an option a line, an empty line between two."""
    return "\n".join(
        f"{section.type}: {section.id}\n" + "".join(f"\t{key} {value}\n" for key, value in section.options.items())
        for section in sections
    )
