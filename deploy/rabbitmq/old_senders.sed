# Also let senders write to the exchanges that all channels share, which senders of 0.1.0 use.
s/\(results\|dead\)(\\\\\.[a-z]+)/(results|dead)(\1)?/
