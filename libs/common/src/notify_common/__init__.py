"""The library that all services share: message contracts, RabbitMQ access, the process runtime, and sending."""
