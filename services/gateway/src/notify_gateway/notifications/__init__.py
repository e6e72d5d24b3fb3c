"""Accept, read and cancel notifications."""
