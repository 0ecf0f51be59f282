import os
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest_plugins = ['browser']                     # its fixtures: a browser, a JupyterLab

RUN = 'test_run_all_from_a_fresh_kernel[{}]'.format

def pytest_itemcollected(item):
    "What needs a browser is known by its fixtures; in a JupyterLab lessons run."
    if 'browser' in item.fixturenames: item.add_marker('browser')
    if 'lab' in item.fixturenames: item.add_marker('trained')

@pytest.hookimpl(trylast=True)                   # when it is known what will run
def pytest_collection_modifyitems(config, items):
    """Lesson 03 first: it trains the model that other lessons and the widgets load. They come last.
    The page of widgets once: where there is a browser, all of it runs in a JupyterLab."""
    late = lambda item: item.get_closest_marker('trained') is not None
    items.sort(key=lambda item: (item.name != RUN('03_prefill'), late(item)))
    if any(item.name == 'test_the_page_of_widgets_in_jupyterlab' for item in items):
        twice = [item for item in items if item.name == RUN('widgets')]
        items[:] = [item for item in items if item not in twice]
        config.hook.pytest_deselected(items=twice)

@pytest.fixture(scope='session', autouse=True)
def own_cache_folder(tmp_path_factory):
    "Downloads and course models of the tests go to a folder of their own, shared by all lessons of one run."
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
    os.environ['TINYLM_DATA'] = str(shared/'data')

@pytest.fixture(scope='session')
def demo():
    "A demo of fewer steps, where lesson 13 looks for one to round; with TINYLM_LONG=1 it trains the whole."
    from tinylm.modern import DEMO, DEMO_RECIPE
    from tinylm.training import model_path, trained_model
    path = model_path('demo', DEMO, DEMO_RECIPE)
    if 'TINYLM_LONG' in os.environ or path.exists(): return
    trained_model('demo', DEMO, replace(DEMO_RECIPE, steps=200)).save_safetensors(path)
