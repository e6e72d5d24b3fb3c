"""Chaos tests: inject faults under load; nothing may be lost, and a fault must explain every repeated send."""
