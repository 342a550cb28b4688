"""The one exception that a user is meant to read."""

import difflib
from collections.abc import Iterable


class ApqError(Exception):
    """A mistake the user can mend: one line that says what, where and what to do."""


LOST_WORKER = (
    "a process that decodes images is lost (out of memory?): start fewer with --n_workers; "
    "the same command goes on from the last save"
)


def closest(word: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the choice nearest to `word`, or an empty string."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""
