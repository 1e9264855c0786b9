"""The default directory for private files is ours alone, or is not used."""

import os
import stat
from pathlib import Path

import pytest

from juggler.app import _make_private
from juggler.errors import ConfigError

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners here")


def test_ours_is_closed_to_others(tmp_path: Path) -> None:
    directory = tmp_path / "juggler"
    directory.mkdir()
    directory.chmod(0o777)
    _make_private(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "juggler").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="somebody else has made it"):
        _make_private(tmp_path / "juggler")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "juggler"
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    with pytest.raises(ConfigError, match="somebody else"):
        _make_private(directory)
