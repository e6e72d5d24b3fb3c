"""What the services share: channels, messages, topology, group commit, and the runtime of the senders."""
