"""Chaos tests: load the real processes, inject faults, and check that nothing is lost and that a fault explains each repeat."""
