"""The real processes under load and a scripted series of faults, then an audit: was anything lost, or sent twice?"""
