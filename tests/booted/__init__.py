"""The service under a systemd that is PID 1; `make booted` runs these."""
