"""Runs the whole system on one machine without Docker: private servers, the services and a demo."""
