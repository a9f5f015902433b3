"""Settings: read from the environment, and listed in ``.env.example``."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfl.cli import settings as cli_settings
from pfl.handler.core.errors import InvalidRequestError
from pfl.handler.core.settings import SETTINGS, Settings

ROOT = Path(__file__).resolve().parents[1]


def env_example() -> str:
    """The text of ``.env.example``: each setting with its meaning, its choices and its default."""
    lines = ["# The settings of pfl: flags override the environment, which overrides this file."]
    for setting in SETTINGS.values():
        choices = f" ({' or '.join(setting.choices)})" if setting.choices else ""
        default = (
            str(int(setting.default)) if isinstance(setting.default, bool) else str(setting.default)
        )
        lines += ["", f"# {setting.meaning}{choices}", f"# {setting.env}={default}"]
    return "\n".join(lines) + "\n"


def test_the_env_example_lists_every_setting_with_its_default():
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == env_example()


def test_an_empty_environment_gives_the_defaults():
    assert Settings.from_env({}) == Settings()


def test_an_empty_variable_counts_as_unset():
    assert Settings.from_env({setting.env: "" for setting in SETTINGS.values()}) == Settings()


def test_each_variable_sets_its_own_field():
    given = {
        "PFL_STORE": "s3://b/p",
        "PFL_ENGINE": "direct",
        "PFL_INLINE_BYTES": "12",
        "PREFECT_API_KEY": "k",
        "PFL_PROJECT": "/p",
    }
    settings = Settings.from_env(given | {"HOME": "/root"})
    assert settings == Settings(
        store="s3://b/p", engine="direct", inline_bytes=12, prefect_api_key="k", project="/p"
    )


@pytest.mark.parametrize(
    ("text", "meant"),
    [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("False", False), ("no", False)],
)
def test_yes_and_no_are_understood_in_their_usual_spellings(text, meant):
    assert Settings.from_env({"PFL_PRELOAD": text}).preload is meant


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PFL_INLINE_BYTES", "many"),
        ("PFL_INLINE_BYTES", "-1"),
        ("PFL_INLINE_BYTES", "1.5"),
        ("PFL_INLINE_BYTES", "１２"),
        ("PFL_SERVER_IDLE_S", "1h"),
        ("PFL_PRELOAD", "maybe"),
        ("PFL_PRELOAD", "2"),
        ("PFL_ENGINE", "Prefect"),
        ("PFL_ENGINE", "dask"),
    ],
)
def test_a_value_that_does_not_parse_is_refused_by_the_name_of_its_variable(variable, text):
    with pytest.raises(InvalidRequestError) as caught:
        Settings.from_env({variable: text})
    assert variable in caught.value.what
    assert repr(text) in caught.value.why
    assert caught.value.exit_code == 2


def test_settings_cannot_be_changed_once_read():
    with pytest.raises(AttributeError):
        Settings().store = "elsewhere"


def test_every_secret_is_marked_as_one():
    secrets = {name for name, setting in SETTINGS.items() if setting.secret}
    assert secrets == {"prefect_api_key"}
    assert not [
        name
        for name in SETTINGS
        if any(word in name for word in ("key", "token", "password")) and name not in secrets
    ]


def test_the_root_is_the_nearest_directory_upwards_with_a_pipeline(project, monkeypatch):
    inner = project.root / "docs" / "deep"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert Settings().root == project.root
    assert Settings().home == project.root / ".pfl"


def test_outside_any_project_the_root_is_where_pfl_itself_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Settings().root == ROOT


def test_a_project_that_is_set_beats_the_working_directory(project, tmp_path):
    assert Settings(project=str(tmp_path)).root == tmp_path


def test_a_command_outside_any_project_says_whose_flows_it_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli_settings.load()
    assert (
        f"no flows/pipeline.py in {tmp_path} or above it: using the flows of {ROOT}"
        in capsys.readouterr().err
    )
    monkeypatch.chdir(ROOT / "tests")
    cli_settings.load()
    assert capsys.readouterr().err == ""
