"""Status changes as server-sent events."""
