"""What ends a command of the local stack."""


class CanNotRun(Exception):
    """This machine or folder does not let the command go on. The message says why and what to do."""
