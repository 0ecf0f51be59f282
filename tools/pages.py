"What nbdev's pages need beside nbdev's own steps: settings.ini names these functions as `procs`."
import importlib, re
from functools import reduce
from pathlib import Path

from nbdev.processors import Processor

from arguments import table

SIGNATURE = re.compile(r'```python\n(?:def|class|@).*?\n```\n', re.S)
FOLDED = 'cli',                               # pages that are read for what they do, not for their source

def argument_tables(cell): # of a page that nbdev makes; changed in place
    "A signature stands in the code below: what `show_doc` says of it becomes a table of its arguments."
    name = re.search(r'show_doc\(([\w.]+)', cell.source or '') if cell.cell_type == 'code' else None
    for out in cell.get('outputs', []) if name else []:
        data = out.get('data', {})
        text = ''.join(data.get('text/markdown', ''))
        module = re.search(r'/(\w+)/(\w+)\.py#L\d+', text)
        if not module or not SIGNATURE.search(text): continue
        thing = reduce(getattr, name[1].split('.'), importlib.import_module(f'{module[1]}.{module[2]}'))
        text = SIGNATURE.sub('', text, count=1).rstrip()
        data['text/markdown'] = f'{text}\n\n{table(thing)}'.rstrip() + '\n'

class fold_source(Processor):
    "On some pages, exported code is folded to a line."
    def cell(self, cell):
        if cell.cell_type == 'code' and Path(self.nb.path_).stem in FOLDED:
            cell.source = cell.source.replace('#| code-fold: show', '#| code-fold: true', 1)
