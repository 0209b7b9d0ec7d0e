"""Who looks on: history and metrics of what tunnels do, as observers (ports/events.py) that nothing waits for."""
