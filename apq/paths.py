"""Where trained models are looked for: the folder at hand first, then those shipped with APQ."""

from importlib import util
from pathlib import Path

MODELS_DIR = Path("models")


def shipped_models_dir() -> Path | None:
    """Return the folder of the installed package `models`, None where it is missing."""
    spec = util.find_spec("models")
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else None


def find_model(path: str | Path) -> Path:
    """Return `path`, or its shipped twin when it lies under a `models/` that has no such file."""
    path = Path(path)
    if path.exists() or path.is_absolute() or path.parts[:1] != MODELS_DIR.parts:
        return path
    shipped = shipped_models_dir()
    twin = shipped.joinpath(*path.parts[1:]) if shipped else path
    return twin if twin.exists() else path


def find_in(given: str | Path, name: str) -> Path:
    """Return the file `name` of a folder of models, shipped ones included, else what was given."""
    file = find_model(Path(given) / name)
    return file if file.is_file() else find_model(given)
