"""What runs in a worker process: TLS and streams, without privileges, for a daemon that does everything else."""
