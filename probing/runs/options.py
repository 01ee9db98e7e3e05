"""Checks that the options of several jobs share."""


def check_at_least(config: object, **least: int) -> None:
    """Raise ``ValueError`` for an option below its least value; one that is None was not given."""
    for name, lowest in least.items():
        value = getattr(config, name)
        if value is not None and value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, not {value}")
