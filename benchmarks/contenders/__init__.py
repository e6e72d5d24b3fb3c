"""The contenders: this service, and the alternatives, each configured as its own documentation recommends.

Every contender's processes import this package, so nothing is imported here.
"""
