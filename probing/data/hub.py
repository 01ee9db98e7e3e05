"""Whether the hub can be asked: its library tries each file six times, half a minute for a name that is misspelt."""

import http.client
import ssl
import urllib.error
import urllib.request

TRIES = 2
SECONDS = 5.0
"""For an answer to one small question. Downloads keep the times that the library or its user sets."""


def find_hub_problem() -> str | None:
    """Why the hub cannot be asked, in words that follow a comma; None where it answers, whatever it says."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "the hub is not asked, since HF_HUB_OFFLINE is set"
    problem = None
    for _ in range(TRIES):
        problem = _ask(constants.ENDPOINT)
        if problem is None:
            return None
    return f"the hub cannot be reached ({problem})"


def _ask(address: str) -> str | None:
    """What keeps an answer from coming, if anything does."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        # This is an answer.
        return None
    except urllib.error.URLError as error:
        # Of certificates the library has its own opinion.
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    return None
