"""The status page: what `mtunnel status --json` says, in a browser."""
