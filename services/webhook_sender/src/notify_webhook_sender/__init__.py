"""Delivers notifications as webhooks. The code that all senders share is in `notify_common.sending`."""
