"""The phrases by which answers are judged, from the file that comes with the package or from one in its place."""

from pathlib import Path

from probing.data.bundled import bundled_phrases
from probing.directions.judge_text import Phrases, parse_phrases
from probing.errors import DataInvalid


def read_phrases(path: Path | None = None) -> Phrases:
    """The phrases of a file, by default of the package's own.

    Raises:
        DataInvalid: there is no such file, or a line of it is not what it must be.
    """
    file = bundled_phrases() if path is None else path.expanduser()
    try:
        return parse_phrases(file.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise DataInvalid(f"{file}: no file of phrases ({error})") from error
