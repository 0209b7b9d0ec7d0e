"""The front process: TLS and streams, without privileges, for a daemon that does all the rest (net/fronts)."""
