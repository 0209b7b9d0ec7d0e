"""A running VM on its way: mirrors of its disks, its memory, and UNIX sockets that lead to the target."""
