"""Mistakes a user can fix. A class of its own: a user of TRL has no other from us."""


class SettingsError(ValueError):
    """A setting of the trainer or of the method, named in one line with the fix."""


def require(condition: bool, message: str) -> None:
    """Raise SettingsError with the message unless the condition holds."""
    if not condition:
        raise SettingsError(message)
