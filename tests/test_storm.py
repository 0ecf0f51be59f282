"Storms of signals and kills, in small; `TINYLM_STORM=150 pytest tests/test_storm.py` runs the whole of it."
import json, os
from pathlib import Path

import pytest
from helpers import STORM, run_python
from storm import one_engine, one_folder

from tinylm.core import owning

def test_engines_are_right_after_a_storm_of_signals():
    assert sum(one_engine(seed)['hits'] for seed in range(STORM)) > 0

@pytest.mark.slow
def test_files_are_whole_and_alone_after_a_storm_of_signals(tmp_path):
    hits = 0
    for seed in range(STORM):
        (folder := tmp_path/str(seed)).mkdir()
        hits += one_folder(seed, folder)['hits']
    assert hits > 0

@pytest.mark.slow
def test_kills_leave_no_bad_and_no_stray_file_and_change_no_bit(tmp_path):
    n, env = max(15, 2*STORM), os.environ | {'OMP_NUM_THREADS': '1'}
    script = Path(__file__).with_name('kills.py')
    done = run_python(script, n, tmp_path, 0, env=env)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures['train']['kills'] + figures['save']['kills'] == n and figures['train']['resumed'] > 0

def test_who_may_not_own_a_file_leaves_the_lock_of_its_owner(tmp_path):
    path = tmp_path/'file'
    with owning(path):
        for _ in range(2):
            with pytest.raises(ValueError, match='is being written'), owning(path): pass
    with owning(path): pass
    assert [*tmp_path.iterdir()] == []
