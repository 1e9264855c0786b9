"""Bare ``juggler``."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from juggler.cli.main import DEFAULT_CONTROL_URL, cli


@pytest.mark.parametrize("told", [False, True])
def test_bare_juggler_looks_where_the_environment_says(tmp_path: Path, told: bool) -> None:
    """As every other command does: it must not claim that nothing runs after looking elsewhere."""
    (tmp_path / "mine.json").touch()
    environ = {"JUGGLER_URL": "http://127.0.0.1:1", "JUGGLER_CONFIG": str(tmp_path / "mine.json")} if told else {}
    unset = {"JUGGLER_URL": None, "JUGGLER_CONFIG": None}
    result = CliRunner().invoke(cli, [], env={**unset, **environ})
    assert result.exit_code == 0, result.output
    if told:
        assert "No juggler runs at http://127.0.0.1:1." in result.output
        assert f"juggler check {tmp_path / 'mine.json'}" in result.output
    else:
        assert DEFAULT_CONTROL_URL in result.output or "pools:" in result.output
