"""TLS on memory BIOs: contexts, certificates, and pinned fingerprints."""
