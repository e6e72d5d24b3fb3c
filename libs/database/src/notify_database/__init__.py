"""The notification database: models, engine and migrations. Only the gateway and the status writer depend on it."""
