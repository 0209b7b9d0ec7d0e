"""The websocket helper of a Proxmox source: between its pipes and the target (`mtunnel websocket-tunnel`)."""
