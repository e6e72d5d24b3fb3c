"""RabbitMQ: connections, confirmed publishing, consuming, dead letters."""
