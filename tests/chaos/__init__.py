"""Chaos tests: put the real processes under load and faults, then check that nothing was lost or sent twice."""
