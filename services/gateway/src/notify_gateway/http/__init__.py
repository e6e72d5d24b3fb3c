"""The HTTP layer that all routes share: server, request limits, authentication and problem details."""
