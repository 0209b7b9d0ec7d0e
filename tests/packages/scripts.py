"""A script of the package, run in a tree of its own."""

from pathlib import Path

DEBIAN = Path(__file__).parents[2] / "debian"
PLACES = ("/var/lib/mtunnel", "/etc/mtunnel", "/etc/systemd", "/run/mtunnel", "/run/systemd")


def write_script(name, root):
    """Returns: a copy of the script whose places are all below `root`."""
    text = (DEBIAN / f"mtunnel-tx.{name}").read_text()
    for place in PLACES:
        text = text.replace(place, f"{root}{place}")
    script = root / name
    script.write_text(text)
    return script
