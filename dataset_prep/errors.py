"""The error a user can cure: it names the file, line or key, the value and the remedy."""


class InputError(ValueError):
    """Bad input. The commands print its message and exit with code 2, without a traceback."""
