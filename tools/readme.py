"Write README.md from nbs/index.ipynb, so that the two never say different things."
import json, re
from pathlib import Path

ROOT = Path(__file__).parents[1]

def readme()->str: # the text of README.md
    "The home page as Markdown: its cells up to `default_exp`, with links that start at the top level."
    cells = json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']
    parts = []
    for kind, source in ((c['cell_type'], ''.join(c['source'])) for c in cells):
        if '#| default_exp' in source: break
        parts.append(source if kind == 'markdown' else f'```python\n{source}\n```')
    return re.sub(r'(\]\(|src(?:set)?=")(?!https?:|#)', r'\1nbs/', '\n\n'.join(parts)) + '\n'

if __name__ == '__main__': (ROOT/'README.md').write_text(readme(), encoding='utf-8')
