"""What `mtunnel vm` does with the virtual machines of a host without Proxmox: make, run, change and remove them.

Everything is written in Proxmox's own formats, so that a guest can go to a Proxmox node and come back. A step that
fails leaves nothing: see `changing`.
"""
