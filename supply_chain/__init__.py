"""Tools for SBOMs and releases."""
