"""The code that all senders share: make one attempt per message, report its result, and perhaps schedule a retry."""
