"""The lowest version that pyproject.toml allows of each direct dependency, as constraints for pip.

`python -m tests.support.lowest` prints them; the Makefile installs exactly those beside the newest of everything else
and runs tests on them, so that a lower bound is a promise somebody checks.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement


def lowest_versions(pyproject: dict[str, Any]) -> list[str]:
    """Return `name==version` for every dependency of the project and its extras; each must have a `>=` bound."""
    project = pyproject["project"]
    requirements = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    return sorted(_pinned(Requirement(line)) for line in requirements)


def _pinned(requirement: Requirement) -> str:
    bounds = [part.version for part in requirement.specifier if part.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{requirement} needs exactly one lower bound")
    return f"{requirement.name}=={bounds[0]}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(lowest_versions(tomllib.loads(Path("pyproject.toml").read_text()))) + "\n")
