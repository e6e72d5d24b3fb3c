"""The status writer, which writes delivery results to PostgreSQL and publishes status changes."""
