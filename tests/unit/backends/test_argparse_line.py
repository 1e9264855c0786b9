"""Options of argparse programs, in every form their parser takes; argparse itself is the oracle."""

import argparse

import pytest

from juggler.backends.argparse_line import Option, has_option, option_value, without_options

PORT = Option("--port", shortest="--po")
LISTEN = Option("--listen", shortest="--l", values="optional")
SSL = Option("--ssl", values="many")
SHARE = Option("--share", values=0)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("--port 1 --x 2", "--x 2"),
        ("--port=1 --x 2", "--x 2"),
        ("--por 1 --x", "--x"),
        ("--po=1", ""),
        ("--p 1", "--p 1"),  # ambiguous: the program itself refuses it
        ("--ports 1", "--ports 1"),
        ("-p 1", "-p 1"),
        ("--listen --x", "--x"),
        ("--listen 0.0.0.0 --x", "--x"),
        ("--list=0.0.0.0,:: --x", "--x"),
        ("--ssl cert key --x y", "--x y"),
        ("--share word", "word"),
        ("a --port -1 b", "a b"),
        ("a -- --port 1", "a -- --port 1"),
        ("--port", ""),
    ],
)
def test_what_is_left(line: str, kept: str) -> None:
    assert without_options(line.split(), (PORT, LISTEN, SSL, SHARE)) == kept.split()


@pytest.mark.parametrize("form", ["--port 7", "--port=7", "--por 7", "--po=7", "--port 1 --port 7", "--port=1 --por 7"])
def test_the_value_is_the_one_argparse_takes(form: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port")
    parser.add_argument("--prompt")
    assert option_value(form.split(), PORT) == parser.parse_args(form.split()).port == "7"


def test_absent_and_bare() -> None:
    assert option_value(["--x"], PORT) is None
    assert option_value(["--listen", "--x"], LISTEN) == ""
    assert has_option(["--share"], SHARE)
    assert not has_option(["--shared"], SHARE)
