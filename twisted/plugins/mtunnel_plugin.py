"""Makes `twistd mtunnel` known; no logic, and no `__init__.py` beside it: the folder is Twisted's."""

from twisted.application.service import ServiceMaker

mtunnel = ServiceMaker(
    "mtunnel", "mtunnel_tx.tap", "Receiver for remote migrations of Proxmox VE virtual machines.", "mtunnel"
)
