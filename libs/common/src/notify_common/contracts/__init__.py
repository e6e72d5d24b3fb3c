"""What all services agree on: messages, channels, ids and the RabbitMQ topology. Importing it connects to nothing."""
