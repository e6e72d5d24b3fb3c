"""Deliveries that are committed and not yet confirmed by RabbitMQ."""
