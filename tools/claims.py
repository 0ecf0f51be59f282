"""List numbers and comparisons in the notebooks' prose that no cell near them supports.

    python tools/claims.py            all of them, without those that tools/claims.yml explains

A number is supported by a cell of its section that holds it, in the code or in the output, as it stands
or rounded. A comparison is supported by an assertion, or by an output with numbers, in a cell near it.
"""
import json
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
KINDS = 'plain', 'markdown', 'html'                # of output that has numbers to read
NEAR = 2                                         # cells before and after a comparison
NOT_PROSE = re.compile('|'.join([
    r'```.*?```', r'`[^`]*`', r'\$\$.*?\$\$', r'\$[^$]*\$',             # code and formulas
    r'(?<=\])\([^)]*\)', r'<[^>]*>', r'https?://\S+',                   # links and tags
    r'^[#>].*?$', r'^\*\*You need.*?$']), re.S | re.M)                  # headings, promises, what is needed
NAMES = re.compile('|'.join([
    r'\b(?:lessons?|exercises?|sections?)\s+\d[\d.]*(?:(?:, | and | to |–)\d[\d.]*)*',
    r'\[\d\d\b[^\]]*\]', r'\((?:\d\d(?:, )?)+\)',                       # [04 · Decode], (05, 10)
    r'\b(?:1[5-9]|20)\d\d\b(?=[),.;: ])', r'\bPython\s+3[\d.]*', r'\b[A-Z]+-?\d+\w*']), re.I)
NUMBER = re.compile(r'(?<![\w.·/])(?<!· )\d+(?:,\d{3})*(?:\.\d+)?(?!\w| ?·)')     # no factor of a formula
DATUM = re.compile(r'\d+(?:[,_]\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?')
COMPARISON = re.compile(r'\b(?:' + '|'.join([
    r'(?:\w+er|more|less|worse|better)\b[^.;:]*?\bthan', 'faster|slower|cheaper|never|always|nearly|almost',
    'beats?|loses?|wins?|half|twice', r'\w+fold|\w+ times as',
    r'(?:a|one|two|three) (?:third|quarter|fifth|sixth|tenth)s?']) + r')\b', re.I)

def sections(notebook):
    "The cells from one heading of the first or second level to the next."
    part = []
    for cell in notebook['cells']:
        if cell['cell_type'] == 'markdown' and re.match('##? ', ''.join(cell['source'])):
            if part: yield part
            part = []
        part.append(cell)
    yield part

def shown(cell):
    "Code and output of a cell as one text; nothing for prose."
    if cell['cell_type'] != 'code': return ''
    parts = [cell['source']]
    for output in cell['outputs']:
        parts += [output.get('text', ''), *(output.get('data', {}).get(f'text/{kind}', '') for kind in KINDS)]
    return '\n'.join(map(''.join, parts))

def data(text): return [float(d.replace(',', '').replace('_', '')) for d in DATUM.findall(text)]

def holds(number, known):
    "Is it there, as it stands, rounded, or as a percentage?"
    places = len(number.partition('.')[2])
    value = float(number.replace(',', ''))
    return any(round(scale*k, places) == value for k in known for scale in (1, 100))

def sentences(text):
    plain = NAMES.sub(' ', NOT_PROSE.sub(' ', text))
    return [' '.join(s.split()) for s in re.split(r'(?<=[.!?:;])\s+|\n\s*\n|\n(?=[-|*])', plain) if s.strip()]

def unsupported(notebook):
    "Triples: id of the cell, the number or comparison, its sentence."
    for part in sections(notebook):
        known = data('\n'.join(map(shown, part)))
        for i, cell in enumerate(part):
            if cell['cell_type'] != 'markdown': continue
            near = '\n'.join(map(shown, part[max(i-NEAR, 0):i+NEAR+1]))
            proven = 'assert' in near or len(data(near)) > 1
            for sentence in sentences(''.join(cell['source'])):
                for number in NUMBER.findall(sentence):
                    if not holds(number, known): yield cell['id'], number, sentence
                for comparison in COMPARISON.finditer(sentence):
                    if not proven: yield cell['id'], comparison.group(), sentence

def unexplained(path, explained):
    "What is left after the explanations of one notebook, and the explanations that nothing needs."
    found = [*unsupported(json.loads(path.read_text(encoding='utf-8')))]
    left = [f for f in found if not any(words in f[2] for words in explained)]
    return left, [words for words in explained if not any(words in f[2] for f in found)]

def main():
    explained = yaml.safe_load((ROOT/'tools/claims.yml').read_text(encoding='utf-8')) or {}
    bad = 0
    for path in sorted((ROOT/'nbs').glob('*.ipynb')):
        left, stale = unexplained(path, explained.get(path.stem, {}))
        for cell, claim, sentence in left: print(f'{path.stem} {cell}: {claim!r} in: {sentence}')
        for words in stale: print(f'{path.stem}: nothing needs the explanation of {words!r}')
        bad += len(left) + len(stale)
    return bad > 0

if __name__ == '__main__': sys.exit(main())
