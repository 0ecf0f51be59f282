"Tables of arguments, made from the comments that stand beside them in the lessons."
import inspect, re
from types import FunctionType

from fastcore.docments import docments

_NONE = inspect.Parameter.empty, type(None), None, type, FunctionType       # the last ones are guessed

def kind(anno)->str: # such as `int` or `None`; empty where none is given
    "A type as it is written."
    if anno in _NONE: return ''
    text = anno if isinstance(anno, str) else inspect.formatannotation(anno)
    text = re.sub(r'\b(?:[a-z_]\w*\.)+(?=\w)', '', text)
    return ' or '.join(f'`{part}`'.replace(' | ', ' or ') for part in re.split(r' \| (?![^\[]*\])', text))

def _cell(text): return ' '.join(str(text).split()).replace('|', '\\|')

def _named(thing):
    about = docments(thing, full=True)
    args = [(name, a) for name, a in about.items() if name not in ('self', 'cls', 'return')]
    return args, about.get('return')

def value(default)->str: # the same on every machine
    "What an argument is when it is not given."
    if default is inspect.Parameter.empty: return ''
    text = getattr(default, '__name__', None) or repr(default)
    return 'made anew' if text == '<factory>' else f'`{text}`'

def call(
    thing, # a function, a method or a class
)->str: # such as `decode(ctx, max_new_tokens, *, temperature=1.0)`
    "How it is called, without types."
    if getattr(thing, '_is_protocol', False): return thing.__name__           # it is kept, not called
    try: signature = inspect.signature(thing)
    except (TypeError, ValueError): return f'{thing.__name__}(...)'
    plain = [p.replace(annotation=inspect.Parameter.empty) for name, p in signature.parameters.items()
             if name not in ('self', 'cls')]
    shown = str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    shown = re.sub(r'<(?:class|function) [\'"]?(?:\w+\.)*(\w+).*?>', r'\1', shown)
    return thing.__name__ + shown.replace('<factory>', '...')

def table(
    thing, # a function, a method or a class
)->str: # Markdown; empty where it takes nothing and says nothing of what it gives
    "A row for each argument: its type, what it is when not given, and what it means."
    args, back = _named(thing)
    rows = [(f'`{name}`', kind(a.anno), value(a.default), a.docment or '') for name, a in args
            if a.docment or not a.kind.name.startswith('VAR')]
    if back and back.docment: rows.append(('*gives*', kind(back.anno), '', back.docment))
    if not any(row[3] for row in rows): return ''
    # the site takes the widths of columns from the second line
    head = ['| argument | type | when not given | what it is |', '|---|----|---|----------|']
    return '\n'.join([*head, *('| ' + ' | '.join(map(_cell, row)) + ' |' for row in rows)])
