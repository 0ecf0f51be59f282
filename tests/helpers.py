"What many tests need: small models, random shapes, processes, and failures at random places."
import ast, contextlib, os, signal, subprocess, sys
from pathlib import Path

import torch
from hypothesis import settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import tinylm
from tinylm import LanguageModel, LMConfig, quantize_

SMALL = dict(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16)
STORM = int(os.environ.get('TINYLM_STORM', 4)) # engines in a storm of signals; the whole storm has 150
DEVICE = os.environ.get('TINYLM_DEVICE', 'cpu') # where the models of the tests are
CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SETUP = ('NATIVE.clear()', 'plt.style.use(', 'os.environ[', 'sys.path.append(', 'if not find_spec(')
quick = settings(deadline=None, max_examples=40)

def sets_up(node):
    "Whether a line of a notebook imports, or chooses how it will run."
    if isinstance(node, ast.Try): return all(map(sets_up, node.body))
    return isinstance(node, (ast.Import, ast.ImportFrom)) or ast.unparse(node).startswith(SETUP)

def seeded(n=0, device='cpu'): return torch.Generator(device).manual_seed(n)

def small_model(seed=0, tokenizer=None, weights='float', **changes):
    "Far from the tame start, so that differences show."
    torch.manual_seed(seed)
    model = LanguageModel(LMConfig(**SMALL | changes))
    model.tokenizer = tokenizer
    for p in model.parameters(): torch.nn.init.normal_(p, std=.3)
    return (quantize_(model) if weights == 'int8' else model).to(DEVICE)

@st.composite
def shapes(draw):
    "Changes of SMALL that make sense together: grouped heads, an inner width, a head of its own, any kernel."
    size, groups, per_group = (draw(st.integers(1, most)) for most in (6, 3, 3))
    heads = groups*per_group
    return dict(n_layer=draw(st.integers(1, 3)), n_head=heads, n_embd=size*heads,
                n_kv_head=draw(st.sampled_from([groups, None])) if per_group == 1 else groups,
                n_inner=draw(st.none() | st.integers(1, 40)), bias=draw(st.booleans()),
                qkv_bias=draw(st.sampled_from([None, True, False])), tie_embeddings=draw(st.booleans()),
                attention=draw(st.sampled_from(['fused', 'reference', 'tiled'])))

@st.composite
def scalings(draw):
    "Ways to stretch rotary positions that keep the law, with their numbers."
    number = lambda low, high: draw(st.floats(low, high))
    kind = draw(st.sampled_from([None, 'default', 'linear', 'llama3']))
    if kind in (None, 'default'): return kind and dict(rope_type=kind)
    more = {} if kind == 'linear' else dict(low_freq_factor=number(.2, 2), high_freq_factor=number(2.1, 9),
                                            original_max_position_embeddings=draw(st.integers(1, 60)))
    return dict(rope_type=kind, factor=number(1, 9), **more)

@st.composite
def modern_shapes(draw):
    "Shapes with any of the parts of lesson 11, and heads that are not C/H wide."
    yes, one_of = (lambda: draw(st.booleans())), lambda *names: draw(st.sampled_from(names))
    shape = draw(shapes()) | dict(norm=one_of('layer', 'rms'), mlp=one_of('gelu', 'swiglu'), qk_norm=yes())
    if not yes(): return shape | dict(head_dim=draw(st.integers(1, 9)))
    D = shape['n_embd']//shape['n_head']
    own = dict(head_dim=2*draw(st.integers(1, 4))) if D % 2 or yes() else {}
    return shape | own | dict(positions='rotary', rope_theta=draw(st.floats(2, 1e6)),
                              rope_scaling=draw(scalings()))

@st.composite
def models(draw, least=2, most=12, attention=('fused', 'reference', 'tiled'),
           shapes=shapes() | modern_shapes(), weights=('float', 'int8')):
    "A random model in evaluation mode, of GPT-2's parts or modern ones, that reads `least` to `most` tokens."
    changes = draw(shapes) | dict(attention=draw(st.sampled_from(attention)),
                                  weights=draw(st.sampled_from(weights)))
    return small_model(draw(st.integers(0, 99)), block_size=draw(st.integers(least, most)), **changes).eval()

def tokens(B, T, seed=0): return torch.randint(11, (B, T), generator=seeded(seed)).to(DEVICE)

def cuts(draw, T):
    "Random chunk sizes that add up to T."
    ends = sorted(draw(st.sets(st.integers(1, T-1), max_size=T-1)) | {T}) if T > 1 else [1]
    return [b-a for a, b in zip([0, *ends], ends)]

def close(a, b, atol=1e-4): return torch.allclose(a, b, atol=atol, rtol=1e-4)

def decided(model, idx, n):
    "The greedy text, and whether each of its tokens wins by more than rounding."
    whole = model.decode(idx, n, temperature=0, use_cache=False)
    with torch.no_grad():
        tops = [model.prefill(model.window(whole[:, :t]))[0][0, -1].topk(2).values
                for t in range(idx.shape[1], whole.shape[1])]
    return whole, all(a - b > 1e-3 for a, b in tops)

# --- processes

def usual_signals(): # a shell's background and nohup hand some down as ignored
    for s in (signal.SIGINT, signal.SIGHUP): signal.signal(s, signal.SIG_DFL)

def start(*words, **how):
    "A process in which Ctrl-C works, whoever started the tests."
    return subprocess.Popen([str(w) for w in words], preexec_fn=usual_signals, **how)

def run(*words, **how):
    "Such a process, waited for, with what it said."
    how = dict(capture_output=True, text=True) | how
    return subprocess.run([str(w) for w in words], preexec_fn=usual_signals, **how)

def start_python(*words, **how): return start(sys.executable, *words, **how)

def run_python(*words, **how): return run(sys.executable, *words, **how)

# --- failures at random places

class Boom(Exception): "What a test throws."

STOPS = Boom, KeyboardInterrupt

class FailingOperation(TorchDispatchMode):
    "The n-th operation of PyTorch fails."
    def __init__(self, n, error=Boom): super().__init__(); self.left, self.error = n, error
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == 0: raise self.error
        return func(*args, **(kwargs or {}))

class Interrupt:
    "Ctrl-C before the n-th line of tinylm, or of the contexts that it opens, that runs inside the block."
    OURS = str(Path(tinylm.__file__).parent), contextlib.__file__
    def __init__(self, n): self.left = n
    def __enter__(self): self.before = sys.gettrace(); sys.settrace(self.trace); return self
    def __exit__(self, *_): sys.settrace(self.before)
    def trace(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(self.OURS): return None
        if event == 'line':
            self.left -= 1
            if self.left == 0: raise KeyboardInterrupt
        return self.trace

FAILURES = dict(operation=FailingOperation, line=Interrupt)

class failing:
    "One of the two, whose exception ends here; `hit` says whether it came so far."
    def __init__(self, how, n): self.inside, self.hit = FAILURES[how](n), False
    def __enter__(self): self.inside.__enter__(); return self
    def __exit__(self, kind, *rest):
        self.inside.__exit__(kind, *rest)
        self.hit = kind is not None and issubclass(kind, STOPS)
        return self.hit
