"""The notification service measured beside what one would build instead: `make bench`, `make bench-scale`."""
