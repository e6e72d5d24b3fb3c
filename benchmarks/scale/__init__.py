"""`make bench-scale`: this service with a large backlog, many stored rows, large messages, failures and outages."""
