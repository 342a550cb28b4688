"""The documents: their Python runs, and their commands have flags that there are."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

from apq import cli

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *REPOSITORY.glob("*.md"),
    *REPOSITORY.glob("docs/*.md"),
    *REPOSITORY.glob("models/*.md"),
    *REPOSITORY.glob("dataset/*.md"),
]
SCRIPTS = {"search.py": "search", "quant_aware.py": "quant-aware", "test.py": "test"}


def blocks(path, language):
    """Return the fenced blocks of a language ('' for none), without their fences."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def commands(path):
    """Yield (command, flags) of each call of ours in a document's blocks."""
    text = "\n".join(blocks(path, ""))
    for line in re.split(r"[\n;]|&&", text.replace("\\\n", " ")):
        words = line.split("#")[0].split()
        names = [SCRIPTS.get(word, word) for word in words]
        ours = next((i for i, word in enumerate(words) if word in ("apq", *SCRIPTS)), None)
        if ours is None or len(words) == ours + 1:
            continue
        place = ours + (words[ours] == "apq")
        if names[place] in cli.COMMANDS:
            rest = words[place:]  # torchrun's come before
            yield names[place], {w.partition("=")[0] for w in rest if w.startswith("--")}


def flags_of(command):
    module = importlib.import_module(f"apq.cli.{cli.COMMANDS[command][0]}")
    return {f"--{name}" for name in module.make_parser("apq").flags()}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_commands_have_flags_that_there_are(path):
    for command, flags in commands(path):
        assert flags <= flags_of(command), command


def test_commands_are_found():
    found = {command for command, _ in commands(REPOSITORY / "README.md")}
    assert {"search", "pareto", "quant-aware", "test", "supernet", "collect", "compare"} <= found


@pytest.mark.parametrize("path", sorted((REPOSITORY / "docs/recipes").glob("*.yaml")), ids=str)
def test_recipes_have_flags_that_there_are(path):
    command = re.match(r"# apq (\S+) --config (\S+)", path.read_text())
    assert command[2] == str(path.relative_to(REPOSITORY))
    settings = yaml.safe_load(path.read_text())
    assert {f"--{name}" for name in settings} <= flags_of(command[1])


def test_links_lead_somewhere():
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)[)#]", path.read_text()):
            assert (path.parent / link).exists(), f"{path}: {link}"


def test_the_readme_predicts_and_searches_in_python(capsys):
    predict, search, *_ = blocks(REPOSITORY / "README.md", "python")
    names = {}
    exec(predict, names)
    assert names["latency_ms"].shape == names["accuracy"].shape == (1000,)
    assert "expand" in capsys.readouterr().out
    exec(search.replace("seconds=10, evaluations=0", "evaluations=500"), names)
    assert names["found"].costs[0] <= 0.6
    assert 0.8 < names["found"].accuracy < 1
