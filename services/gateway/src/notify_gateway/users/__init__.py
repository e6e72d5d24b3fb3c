"""Stored recipients and opt-outs of users."""
