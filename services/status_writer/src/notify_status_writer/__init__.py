"""The status writer: it writes the results of deliveries to PostgreSQL, and publishes status changes."""
