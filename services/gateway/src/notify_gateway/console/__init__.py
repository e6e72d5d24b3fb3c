"""The operator console and the overview behind it."""
