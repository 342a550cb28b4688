"""What the settings of every search mode have in common."""

from dataclasses import dataclass

from apq.checks import check_whole, check_within


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What all modes share: time, patience, seed; raises ApqError on a value out of range."""

    seconds: float = 0.0
    """Ends after the first step that is over by then; 0 for no limit of time. A search that
    time ends may find another subnet on another machine."""
    patience: int = 0
    """Ends after so many steps without improvement; 0 for never."""
    seed: int = 0
    """Seed of all random choices; the same seed finds the same subnet."""

    def __post_init__(self) -> None:
        check_within(self, "seconds")
        check_whole(self, "patience", "seed", least=0)
