"""What tunnels of QEMU guests do and other guest kinds do not."""
