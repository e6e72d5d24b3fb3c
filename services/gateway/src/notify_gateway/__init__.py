"""Takes notifications over HTTP, stores them in PostgreSQL and relays them to RabbitMQ."""
