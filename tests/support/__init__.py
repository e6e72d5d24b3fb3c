"""Shared test support: servers, provider fakes and in-process services."""
