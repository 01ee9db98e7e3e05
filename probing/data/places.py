"""Places from the short form that options have."""

import re
from collections.abc import Sequence

from probing.types import PLACE_KINDS, Place


def expand_places(given: str | Sequence[str], layers: int | None) -> list[Place]:
    """Places from their short form; where the number of layers is not known yet, only the form is checked.

    Raises:
        ValueError: the text is not a place.
    """
    entries = given.split(",") if isinstance(given, str) else list(given)
    places: list[Place] = []
    for entry in (entry.strip() for entry in entries):
        kind, _, layer = entry.partition(":")
        several = re.fullmatch(r"(\d+)\.\.(\d+)", layer)
        if layer != "all" and several is None:
            places.append(_place(entry))
            continue
        first_place = _place(f"{kind}:0")
        first, last = (0, (layers or 1) - 1) if several is None else (int(several[1]), int(several[2]))
        if first > last:
            raise ValueError(f"'{entry}': the layers run from the lower to the higher")
        if layers is not None:
            # One layer beyond the last is kept, so that the error about a missing layer is raised later.
            places += [Place(first_place.kind, number) for number in range(first, min(last, layers) + 1)]
        else:
            places.append(first_place)
    if not places:
        raise ValueError("at least one place must be given")
    if layers is not None:
        places = [_count_from_start(place, layers) for place in places]
    return list(dict.fromkeys(places))


def _count_from_start(place: Place, layers: int) -> Place:
    """The same place with a layer that is there counted from 0."""
    if place.layer is None or not -layers <= place.layer < 0:
        return place
    return Place(place.kind, place.layer + layers)


def _place(text: str) -> Place:
    try:
        return Place.parse(text)
    except ValueError as error:
        raise ValueError(
            f"{error}; a place is written resid_post:3, resid_post:-1, resid_post:4..8, resid_post:all (or "
            f"{', '.join(kind for kind in PLACE_KINDS if kind not in ('resid_post', 'final_norm'))}), or final_norm"
        ) from error
