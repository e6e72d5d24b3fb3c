"""The transactional outbox, and the relay that publishes its deliveries to RabbitMQ."""
