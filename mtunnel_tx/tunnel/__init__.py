"""The control path: what a tunnel's commands do."""
