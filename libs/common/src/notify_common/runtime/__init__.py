"""What every service process needs: settings, logging, metrics, tracing, health and batching."""
