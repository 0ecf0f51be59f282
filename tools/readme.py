"Write README.md from nbs/index.ipynb, so that the two never say different things."
import json, re
from pathlib import Path

ROOT = Path(__file__).parents[1]

def readme()->str: # the text of README.md
    "The home page as Markdown: its cells up to `default_exp`, without the live model that only the site has."
    cells = json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']
    parts = []
    for kind, source in ((c['cell_type'], ''.join(c['source'])) for c in cells):
        if '#| default_exp' in source: break
        parts.append(source if kind == 'markdown' else f'```python\n{source}\n```')
    live = r'<div class="tinylm-play"[^>]*>\n(.*?)\n</div>\n<script.*?</script>'
    text = re.sub(live, r'\1', '\n\n'.join(parts), flags=re.S)
    return re.sub(r'(\]\(|src(?:set)?=")(?!https?:|#)', r'\1nbs/', text) + '\n'

if __name__ == '__main__': (ROOT/'README.md').write_text(readme(), encoding='utf-8')
