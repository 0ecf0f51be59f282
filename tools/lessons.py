"""What each lesson asks of its reader, counted: `python tools/lessons.py`; with `--run` also timed."""
import argparse
import re
from pathlib import Path
from time import perf_counter

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
EXERCISE = re.compile(r'^### Exercise (\d) · .+ \((?:easy|medium|hard), (\d+) minutes\)$', re.M)

def lines(cell): return len([s for s in cell.source.splitlines() if s.strip() and not s.startswith('#|')])

def measure(path):
    "The figures of one lesson."
    # what is hidden on the site is no part of the lesson
    cells = [c for c in nbformat.read(path, 4).cells if not c.source.startswith('#| hide')]
    code, text = ([c for c in cells if c.cell_type == kind] for kind in ('code', 'markdown'))
    end = next((i for i, c in enumerate(cells) if c.source.startswith('## Hardening')), len(cells))
    code = [c for c in cells[:end] if c.cell_type == 'code']           # armour lies off the reading path
    lengths, prose = sorted(map(lines, code)), '\n'.join(c.source for c in text)
    exercises = EXERCISE.findall(prose)
    return {'words': len(prose.split()), 'code cells': len(code), 'median': lengths[len(lengths)//2],
            '90th': lengths[int(.9*(len(lengths)-1))], 'text per code': round(len(text)/len(code), 2),
            'shown': round(sum(bool(c.outputs) for c in code)/len(code), 2),
            'predictions': len(re.findall(r'\*\*Predict:\*\*', prose)), 'exercises': len(exercises),
            'minutes of exercises': sum(int(minutes) for _, minutes in exercises),
            'breaks': len(re.findall(r'[Bb]reak it|\*\*[Bb]reaks?\*\*', prose)),
            'first shown': next(i for i, c in enumerate(cells) if c.get('outputs'))}

def run_all(path):
    "Seconds to run all cells in a fresh kernel."
    notebook, start = nbformat.read(path, 4), perf_counter()
    NotebookClient(notebook, timeout=900, resources={'metadata': {'path': path.parent}}).execute()
    return perf_counter() - start

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--run', action='store_true', help='time each lesson in a fresh kernel')
    run = parser.parse_args().run
    for i, path in enumerate(LESSONS):
        figures = measure(path) | ({'seconds to run': round(run_all(path))} if run else {})
        if not i: print('| lesson | ' + ' | '.join(figures) + ' |\n|' + '---|'*(len(figures)+1))
        print(f'| {path.stem} | ' + ' | '.join(map(str, figures.values())) + ' |', flush=True)

if __name__ == '__main__': main()
