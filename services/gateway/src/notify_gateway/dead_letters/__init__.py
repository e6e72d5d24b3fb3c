"""Inspect, requeue and drop dead letters."""
