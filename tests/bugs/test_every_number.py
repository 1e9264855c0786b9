"""Each of the 38 bugs of the prototype has a test that carries its number."""

import re
from pathlib import Path


def test_no_number_is_missing() -> None:
    """backends.md section 11 counts 38; a name may carry several numbers."""
    found: set[int] = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        for name in re.findall(r"def test_bug((?:_\d\d)+)_", file.read_text()):
            found.update(int(number) for number in name.strip("_").split("_"))
    assert sorted(set(range(1, 39)) - found) == []
