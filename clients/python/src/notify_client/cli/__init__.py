"""The command `notify`, which needs the extra `cli`. Nothing else of this package imports it."""
