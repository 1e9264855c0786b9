"""Names that were probably meant, and lists of names."""

import pytest

from juggler.config.explain import closest, listing


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("binry", "binary"), ("defaultParameters", "default_parameters"), ("default-parameters", "default_parameters"),
        ("Binary", "binary"), ("attachto", "attach_to"), ("zzz", None),
    ],
)  # fmt: skip
def test_closest(name: str, meant: str | None) -> None:
    """Typing errors, hyphens and capitals are seen through; anything far away is not guessed at."""
    assert closest(name, ["binary", "default_parameters", "attach_to", "env"]) == meant


def test_listing() -> None:
    """A sentence's worth of names, never a flood."""
    assert listing([]) == ""
    assert listing(["a"]) == '"a"'
    assert listing(["a", "b", "c"]) == '"a", "b" or "c"'
    assert listing([str(n) for n in range(20)]).endswith('"11" and 8 more')
