"""The runtime of every sender: one message in, one attempt, its result and perhaps a next attempt out."""
