"""Secrets in what the operator wrote, and their absence in what others read."""

from juggler.backends.secrets import redacted, secrets_of


def test_what_is_found() -> None:
    """Values of options and variables with a telling name, in both forms, and each of a list."""
    parameters = [
        "--api-key",
        "abcd1234,efgh5678",
        "--password=geheim1",
        "--model",
        "m.gguf",
        "--api-key-file",
        "keys.txt",
    ]
    env = {"HF_TOKEN": "hf_secret", "PATH": "/usr/bin", "KCPP_PASSWORD": "kobold!"}
    found = secrets_of([*parameters, "--adminpassword", "adm1n!!"], env)
    assert set(found) == {
        "abcd1234,efgh5678", "abcd1234", "efgh5678", "geheim1", "hf_secret", "kobold!", "adm1n!!",
    }  # fmt: skip
    assert list(found) == sorted(found, key=len, reverse=True)


def test_what_is_too_short_to_be_one() -> None:
    """Masking "1" would spoil every line."""
    assert secrets_of(["--token", "1"], {}) == ()
    assert secrets_of(["--token"], {}) == ()


def test_what_only_says_whether_there_is_one() -> None:
    """Masking "true" would spoil every line too."""
    env = {"WEBUI_AUTH": "true", "HF_TOKEN": "None", "API_KEY": "disabled"}
    assert secrets_of(["--auth", "False"], env) == ()


def test_lines() -> None:
    assert redacted(["args: --api-key abcd1234", "ok"], ("abcd1234",)) == ["args: --api-key ***", "ok"]


def test_names_that_are_values_themselves() -> None:
    """Containers and web UIs take variables as options."""
    assert secrets_of(["-e", "HF_TOKEN=hf_12345"], {}) == ("hf_12345",)
    assert secrets_of(["--env=HF_TOKEN=hf_12345"], {}) == ("hf_12345",)
    assert set(secrets_of([], {"COMMANDLINE_ARGS": "--listen --api-auth user:secretpw"})) == {"user:secretpw"}
    assert secrets_of([], {"COMMANDLINE_ARGS": "--api-auth 'open"}) == ("'open",)
    assert secrets_of(["--env=PATH=/usr/bin", "a=b=c"], {}) == ()
