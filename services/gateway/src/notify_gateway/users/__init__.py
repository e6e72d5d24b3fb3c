"""The recipients and opt-outs that are stored per user and channel."""
