"""The commands and their options."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from juggler.cli.main import cli
from juggler.cli.remote import DEFAULT_CONTROL_URL
from tests.unit.cli.fake_api import FakeApi, status

NOWHERE = "http://127.0.0.1:1"
UNSET = {"JUGGLER_URL": None, "JUGGLER_CONFIG": "/nowhere/config.json", "JUGGLER_KEY": None}


def commands(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*above, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))


ALL = dict(commands(cli))


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_shows_an_example(words: tuple[str, ...]) -> None:
    """One that begins as the command does."""
    result = CliRunner().invoke(cli, [*words, "--help"])
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert f"juggler {' '.join(words)}" in text.partition("Example: ")[2]


@pytest.mark.parametrize(("option", "told"), [("--url", True), ("--json", True), ("--nonsense", False)])
def test_an_option_before_its_command(option: str, told: bool) -> None:
    result = CliRunner().invoke(cli, [option, "x", "ps"])
    assert result.exit_code == 2
    assert ("belongs after the command" in result.output) is told
    assert option in result.output


def test_the_documents_name_every_command() -> None:
    """In the tables of docs/cli.md, and nothing that is none."""
    text = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    named = {tuple(line.split("`")[1].split()[1:]) for line in text.splitlines() if line.startswith("| `juggler ")}
    assert named == set(ALL)


@pytest.mark.parametrize("told", [False, True])
def test_bare_juggler_looks_where_the_environment_says(tmp_path: Path, told: bool) -> None:
    """As every other command does: it must not claim that nothing runs after looking elsewhere."""
    (tmp_path / "mine.json").touch()
    environ = {"JUGGLER_URL": NOWHERE, "JUGGLER_CONFIG": str(tmp_path / "mine.json")} if told else {}
    result = CliRunner().invoke(cli, [], env={**UNSET, **environ})
    assert result.exit_code == 0, result.output
    if told:
        assert f"No juggler runs at {NOWHERE}." in result.output
        assert f"juggler check {tmp_path / 'mine.json'}" in result.output
    else:
        assert DEFAULT_CONTROL_URL in result.output or "pools:" in result.output


def test_a_subcommand_takes_the_address_of_its_group(api: FakeApi) -> None:
    """Wherever it is written, and its own comes first."""
    api.answers["*"] = (200, {"request": 5, "result": "cancelled"})
    for words in (
        ["queue", "--url", api.url, "--key", "k", "cancel", "5"],
        ["queue", "--url", NOWHERE, "cancel", "--url", api.url, "--key", "k", "5"],
    ):
        result = CliRunner().invoke(cli, words, env=UNSET)
        assert (result.exit_code, result.output) == (0, "5: cancelled\n")
    assert api.asked == [("DELETE /api/v1/requests/5", "Bearer k")] * 2


def test_address_and_key_from_the_environment(api: FakeApi) -> None:
    api.answers["GET /api/v1/status"] = (200, status())
    result = CliRunner().invoke(cli, ["ps"], env={**UNSET, "JUGGLER_URL": api.url, "JUGGLER_KEY": "k"})
    assert result.exit_code == 0
    assert api.asked == [("GET /api/v1/status", "Bearer k")]


def test_address_from_the_configuration(api: FakeApi, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(f'{{"control": {{"port": {api.server.server_port}, "key": "in-the-file"}}}}')
    api.answers["GET /api/v1/status"] = (200, status())
    result = CliRunner().invoke(cli, ["ps", "--config", str(path)], env=UNSET)
    assert result.exit_code == 0
    assert api.asked == [("GET /api/v1/status", "Bearer in-the-file")]


@pytest.mark.parametrize(
    ("words", "exit_status", "told"),
    [
        (["ps", "--url", NOWHERE], 1, "no juggler answers at http://127.0.0.1:1"),
        (["load", "x", "--url", NOWHERE], 1, "hint: start one with `juggler serve`"),
        (["queue", "--url", NOWHERE, "front", "1"], 1, "no juggler answers"),
        (["top", "--url", NOWHERE], 1, "no juggler answers"),
        (["ps", "--url", "localhost"], 2, "is not an http:// or https:// address"),
        (["load"], 2, "Missing argument"),
        (["queue", "cancel", "x"], 2, "is not a valid integer"),
        (["logs", "--since", "soon"], 2, "is not a duration"),
        (["frobnicate"], 2, "No such command"),
        (["serve", "--config", "/nowhere/config.json"], 2, "there is no such file"),
        (["check", "/nowhere/config.json"], 2, "there is no such file"),
        (["queue", "--help"], 0, "Example:"),
        (["--version"], 0, "juggler"),
        (["completion", "bash"], 0, "_JUGGLER_COMPLETE"),
    ],
)
def test_exit_statuses(words: list[str], exit_status: int, told: str) -> None:
    """Of the real program, and nobody sees a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "juggler.cli.main", *words], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == exit_status, done.stderr
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_what_serving_imports() -> None:
    """The live view's library is not among it: the start must not get slower."""
    program = "import sys, juggler.cli.main, juggler.cli.serve; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.strip() == "False"
