"""Read deliveries and retry failed ones."""
