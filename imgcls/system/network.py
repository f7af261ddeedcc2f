"""Whether a server answers: libraries that download wait, and try again, for minutes."""

from urllib.error import HTTPError
from urllib.request import urlopen

from imgcls.errors import one_line

ANSWER_SECONDS = 5.0  # a server that takes longer is not waited for


def unreachable(url: str) -> str | None:
    """Why a server does not answer; None if it does."""
    try:
        with urlopen(url, timeout=ANSWER_SECONDS):
            return None
    except HTTPError:
        return None  # also an answer
    except OSError as error:
        return one_line(error)
