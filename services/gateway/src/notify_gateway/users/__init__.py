"""Users' stored recipients and opt-outs."""
