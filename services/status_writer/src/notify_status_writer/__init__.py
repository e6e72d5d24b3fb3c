"""Writes the results of deliveries to PostgreSQL, and tells what has changed."""
