"Every notebook runs from a fresh kernel, and every exercise has a check that tells right from wrong."
import json, os, re

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))         # lesson 03 trains the model that later ones load
LESSONS = [p for p in NOTEBOOKS if p.name[0].isdigit()]
SOLUTION = re.compile(r'<summary>Solution</summary>\s*```python\n(.*?)```', re.S)
names = lambda p: p.stem

def cells(path): return nbformat.read(path, 4).cells

def with_solutions(nb):
    "After each exercise and its check: the solution, and the check again. Returns where both checks are."
    out, checks = [], []
    for c in nb.cells:
        out.append(c)
        if c.cell_type == 'markdown' and (m := SOLUTION.search(c.source)):
            unsolved = len(out) - 2
            out += [nbformat.v4.new_code_cell(m[1]), nbformat.v4.new_code_cell(out[unsolved].source)]
            checks.append((unsolved, len(out)-1))
    nb.cells = out
    return checks

def printed(cell): return ''.join(o.get('text', '') for o in cell.outputs if o.get('name') == 'stdout')

@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=names)
def test_run_all_from_a_fresh_kernel(path, tmp_path):
    nb = nbformat.read(path, 4)
    checks = with_solutions(nb)
    NotebookClient(nb, timeout=600, kernel_name='python3',
                   resources={'metadata': {'path': ROOT/'nbs'}}).execute()
    for unsolved, solved in checks:
        check = nb.cells[unsolved].source
        empty = printed(nb.cells[unsolved])
        assert empty.startswith('Not yet'), f'the check accepts an empty answer:\n{check}'
        assert printed(nb.cells[solved]).startswith('Right.'), f'the check refuses the solution:\n{check}'

@pytest.mark.parametrize('path', LESSONS, ids=names)
def test_every_lesson_has_its_parts(path):
    text = '\n'.join(c.source for c in cells(path) if c.cell_type == 'markdown')
    title, promise = text.splitlines()[0], text.splitlines()[2]
    assert title.startswith(f'# {path.stem[:2]} · ') and promise.startswith('> ')
    assert '**You need**' in text and '**It takes**' in text
    exercises = re.findall(r'^### \d · .*\((easy|medium|hard)\)$', text, re.M)
    assert len(exercises) >= 3 and exercises == sorted(exercises, key=('easy', 'medium', 'hard').index)
    assert len(SOLUTION.findall(text)) >= len(exercises)
    assert '## To read' in text and len(re.findall(r'\(\d{4}\)', text.split('## To read')[1])) >= 3

@pytest.mark.parametrize('path', LESSONS, ids=names)
def test_cells_stay_small_and_show_something(path):
    code = [c for c in cells(path) if c.cell_type == 'code']
    lengths = sorted(len([l for l in c.source.splitlines() if l.strip() and not l.startswith('#|')])
                     for c in code)
    words = sum(len(c.source.split()) for c in cells(path) if c.cell_type == 'markdown')
    assert lengths[len(lengths)//2] <= 6 and lengths[int(.9*(len(lengths)-1))] <= 20, lengths
    assert sum(bool(c.outputs) for c in code) >= len(code)/3
    assert 800 <= words <= 2500, words

@pytest.mark.parametrize('path', NOTEBOOKS, ids=names)
def test_saved_outputs_are_there_and_clean(path):
    code = [c for c in cells(path) if c.cell_type == 'code']
    outputs = [o for c in code for o in c.outputs]
    assert outputs and not [o for o in outputs if o.output_type == 'error']
    assert not [o.text for o in outputs if o.get('name') == 'stderr' and 'Warning' in o.text]
    text = json.dumps(outputs)
    assert str(ROOT) not in text and os.path.expanduser('~') + '/' not in text and '/tmp/' not in text
    assert all(c.execution_count is None for c in code)                   # nbdev_clean has been here
