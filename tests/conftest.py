"""Shared fixtures."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real files (`hic/`, `sc/`), or a skip that says how to get one."""
    folder = os.environ.get("XLOADER_TEST_DATA")
    if not folder:
        pytest.skip("XLOADER_TEST_DATA is not set to a folder with real hic/ and sc/ files")
    return Path(folder)
