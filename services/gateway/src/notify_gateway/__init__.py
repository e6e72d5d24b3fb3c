"""The gateway: accept notifications over HTTP, store them in PostgreSQL and relay them to RabbitMQ."""
