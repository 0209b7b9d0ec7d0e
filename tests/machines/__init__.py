"""The machines that Proxmox builds, config by config, against those that are built here."""
