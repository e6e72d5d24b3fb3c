"""The contracts between the services: messages, channels, ids and the RabbitMQ topology."""
