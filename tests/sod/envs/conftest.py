"""What several environments' tests share: games and an index that take seconds to make are made once."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def textworld_cache(tmp_path_factory):
    """Folder of game files; xdist's processes have one each."""
    return tmp_path_factory.mktemp("textworld")
