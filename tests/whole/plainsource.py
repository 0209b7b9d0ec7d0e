"""`mtunnel`, but for its websockets, which it asks for as Proxmox VE does: they end with their connections."""

import mtunnel_tx.wire.resuming

mtunnel_tx.wire.resuming.HEADER = "Not-Resumed"

from mtunnel_tx.cli.main import main  # noqa: E402 - nobody may have the header's name before

if __name__ == "__main__":
    main()
