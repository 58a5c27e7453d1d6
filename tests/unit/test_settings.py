"""What the environment says, and what it means when it says nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from agentfield.errors import InvalidInputError
from agentfield.settings import VARIABLES, Settings

NAMED = {"AGENTFIELD_HOME": "/data/agentfield"}


def test_an_empty_environment_means_the_defaults() -> None:
    settings = Settings.load({})
    assert (settings.nats_url, settings.namespace, settings.ai_model) == (None, "agentfield", None)
    assert settings.home.is_absolute()


def test_every_variable_is_read() -> None:
    settings = Settings.load(
        {
            "AGENTFIELD_NATS_URL": "nats://a:4222",
            "AGENTFIELD_NAMESPACE": "staging",
            "AGENTFIELD_HOME": "/data/agentfield",
            "AGENTFIELD_AI_MODEL": "openai/gpt-4o-mini",
        }
    )
    assert settings == Settings("nats://a:4222", "staging", Path("/data/agentfield"), "openai/gpt-4o-mini")


def test_the_depth_at_which_handlers_are_stopped_is_a_count() -> None:
    assert Settings.load(NAMED).max_depth == 100
    assert Settings.load(NAMED | {"AGENTFIELD_MAX_DEPTH": "7"}).max_depth == 7
    for wrong in ("0", "-1", "1.5", "many", "off", "9999999999999999999999", "²"):
        with pytest.raises(InvalidInputError, match="AGENTFIELD_MAX_DEPTH"):
            Settings.load(NAMED | {"AGENTFIELD_MAX_DEPTH": wrong})


def test_our_own_url_comes_before_the_common_one() -> None:
    both = NAMED | {"AGENTFIELD_NATS_URL": "nats://ours", "NATS_URL": "nats://common"}
    assert Settings.load(both).nats_url == "nats://ours"
    assert Settings.load(NAMED | {"NATS_URL": "nats://common"}).nats_url == "nats://common"


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_blank_is_the_same_as_not_set(blank: str) -> None:
    assert Settings.load(dict.fromkeys(VARIABLES, blank)) == Settings.load({})
    assert Settings.load({"AGENTFIELD_NATS_URL": blank, "NATS_URL": "nats://b"}).nats_url == "nats://b"


def test_space_around_a_value_does_not_count() -> None:
    assert Settings.load(NAMED | {"AGENTFIELD_NAMESPACE": " staging\n"}).namespace == "staging"


def test_the_process_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTFIELD_NAMESPACE", "from-the-process")
    assert Settings.load().namespace == "from-the-process"
    assert Settings.load(NAMED).namespace == "agentfield"


@pytest.mark.skipif(sys.platform != "linux", reason="the convention of Linux")
def test_the_home_follows_the_systems_convention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")
    assert Settings.load({}).home == Path("/xdg/agentfield")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/users/ann")
    assert Settings.load({}).home == Path("/users/ann/.local/share/agentfield")


def test_a_named_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/users/ann")
    assert Settings.load({"AGENTFIELD_HOME": "data"}).home == tmp_path / "data"
    assert Settings.load({"AGENTFIELD_HOME": "~/data"}).home == Path("/users/ann/data")


def test_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="AGENTFIELD_HOME is '~nobody-at-all/x', but there is no such user"):
        Settings.load({"AGENTFIELD_HOME": "~nobody-at-all/x"})


def test_settings_do_not_change() -> None:
    with pytest.raises(AttributeError):
        Settings.load(NAMED).namespace = "other"  # type: ignore[misc]


def test_reading_them_is_light() -> None:
    program = "import agentfield.settings, sys; print('platformdirs' in sys.modules, 'nats' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False"]
