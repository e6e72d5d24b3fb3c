"""RabbitMQ: connections, confirmed publishing, consuming, and dead letters."""
