"""The runtime of every service process: settings, logging, metrics, tracing, health and batching."""
