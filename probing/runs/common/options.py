"""The options that jobs share, each described once."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any


def check_at_least(config: object, **least: int) -> None:
    """Raise ``ValueError`` for an option below its least value; one that is None was not given."""
    for name, lowest in least.items():
        value = getattr(config, name)
        if value is not None and value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, not {value}")


def check_beside_store(config: Any, names: Sequence[str]) -> None:
    """Raise ``ValueError`` for options of a capture that were given beside ``--store``, which settles them."""
    if config.store is None:
        return
    defaults = {field.name: field.default for field in fields(config)}
    settled = [f"--{name.replace('_', '-')}" for name in names if getattr(config, name) != defaults[name]]
    if settled:
        raise ValueError(f"the states of a store are captured already; leave out {', '.join(settled)}")
