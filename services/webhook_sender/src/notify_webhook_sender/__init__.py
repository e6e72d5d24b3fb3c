"""Delivers as webhooks. What is its own stands here; the rest is `notify_common.sending`."""
