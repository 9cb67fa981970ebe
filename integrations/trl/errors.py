"""Mistakes a user can fix. A class of its own, because the installed package has none of the repository's other folders."""


class SettingsError(ValueError):
    """A setting of the trainer or of the method. The message names the argument and the fix in one line."""


def require(condition: bool, message: str) -> None:
    """Raise SettingsError with the message unless the condition holds."""
    if not condition:
        raise SettingsError(message)
