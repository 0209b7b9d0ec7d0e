"""Pure: Proxmox's text formats."""
