import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest_plugins = ['browser']                     # its fixtures: a browser, a JupyterLab

RUN = 'test_run_all_from_a_fresh_kernel[{}]'.format

def pytest_itemcollected(item):
    "What needs a browser is known by its fixtures; a JupyterLab takes all cores."
    if 'browser' in item.fixturenames: item.add_marker('browser')
    if 'lab' in item.fixturenames: item.add_marker('alone')

@pytest.hookimpl(trylast=True)                   # when it is known what will run
def pytest_collection_modifyitems(config, items):
    """Lesson 03 first: it trains the model that other lessons and the widgets load.
    The page of widgets once: where there is a browser, all of it runs in a JupyterLab."""
    items.sort(key=lambda item: item.name != RUN('03_prefill'))
    if any(item.name == 'test_the_page_of_widgets_in_jupyterlab' for item in items):
        twice = [item for item in items if item.name == RUN('widgets')]
        items[:] = [item for item in items if item not in twice]
        config.hook.pytest_deselected(items=twice)

@pytest.fixture(scope='session', autouse=True)
def own_cache_folder(tmp_path_factory):
    "Downloads and course models of the tests go to a folder of their own, shared by all lessons of one run."
    os.environ['TINYLM_DATA'] = str(tmp_path_factory.mktemp('data'))
