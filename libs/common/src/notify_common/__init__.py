"""The library that all services share: contracts, RabbitMQ, the process runtime, and sending."""
