"""Reconcile PostgreSQL with RabbitMQ after one of them was restored from a backup or has lost its data."""
