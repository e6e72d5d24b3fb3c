"""Delivers notifications over Telegram. The code that all senders share is in `notify_common.sending`."""
