import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest_plugins = ['browser']                     # its fixtures: a browser, a JupyterLab

@pytest.fixture(scope='session', autouse=True)
def own_cache_folder(tmp_path_factory):
    "Downloads and course models of the tests go to a folder of their own, shared by all lessons of one run."
    os.environ['TINYLM_DATA'] = str(tmp_path_factory.mktemp('data'))
