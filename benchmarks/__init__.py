"""Benchmarks of the notification service, alone and against the usual alternatives."""
