"""Chaos in a cluster: nodes of RabbitMQ and members of PostgreSQL fail under load, and nothing may be lost."""
