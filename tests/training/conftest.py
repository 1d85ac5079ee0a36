"""The tiny text that whole runs are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.story import tell


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tell(tmp_path, monkeypatch)
