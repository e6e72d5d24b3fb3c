"""Delivers notifications by e-mail. The code that all senders share is in `notify_common.sending`."""
