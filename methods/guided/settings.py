"""The settings of the guided search."""

from dataclasses import dataclass

from apq.checks import check_whole
from apq.errors import ApqError
from methods.settings import SearchSettings


@dataclass(frozen=True, kw_only=True)
class GuidedSettings(SearchSettings):
    """How large and how long the search is; raises ApqError on a value out of range."""

    evaluations: int = 50_100
    """Ends after the first step that has evaluated so many subnets; the default is as many as
    evolution's. A gradient counts like an evaluation. 0 for no limit: then `seconds` or `patience`
    has to end the search."""
    elites: int = 8
    """Subnets that the first descent keeps and changes; every fresh one keeps twice as many as
    the last, up to eight times this number, and then begins anew."""
    children: int = 8
    """A step draws children x elites changed subnets, however many elites the descent keeps; those
    that break a limit are dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "evaluations", least=0)
        check_whole(self, "elites", "children", least=1)
        if not (self.evaluations or self.seconds or self.patience):
            raise ApqError("nothing ends the search: set evaluations, seconds or patience")
