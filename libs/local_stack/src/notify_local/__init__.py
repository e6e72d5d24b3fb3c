"""Runs private servers, all services and a demo on one machine without Docker."""
