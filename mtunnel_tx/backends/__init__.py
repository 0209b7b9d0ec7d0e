"""The world: files, children, hypervisors."""
