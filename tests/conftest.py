import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest_plugins = ['browser']                     # its fixtures: a browser, a JupyterLab

def pytest_collection_modifyitems(items):
    "Lesson 03 first: it trains the model that other lessons and the widgets load."
    items.sort(key=lambda item: not item.nodeid.endswith('test_run_all_from_a_fresh_kernel[03_prefill]'))

@pytest.fixture(scope='session', autouse=True)
def own_cache_folder(tmp_path_factory):
    "Downloads and course models of the tests go to a folder of their own, shared by all lessons of one run."
    os.environ['TINYLM_DATA'] = str(tmp_path_factory.mktemp('data'))
