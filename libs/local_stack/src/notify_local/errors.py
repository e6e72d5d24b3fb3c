"""The error that ends a command of the local stack."""


class CannotRun(Exception):
    """The command cannot continue on this machine or in this folder. The message says why and what to do."""
