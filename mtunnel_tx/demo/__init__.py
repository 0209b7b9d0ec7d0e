"""The demonstration: two nodes in a temporary folder, and the VMs that move between them."""
