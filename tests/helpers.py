"What many tests need: small models, random shapes, and failures at random places."
import os, sys
from contextlib import contextmanager

import torch
from hypothesis import settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tinylm import LanguageModel, LMConfig

SMALL = dict(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16)
STORM = int(os.environ.get('TINYLM_STORM', 4)) # engines in a storm of signals; the whole storm has 150
quick = settings(deadline=None, max_examples=40)

def seeded(n=0): return torch.Generator().manual_seed(n)

def small_model(seed=0, **changes):
    "Far from the tame start, so that differences show."
    torch.manual_seed(seed)
    model = LanguageModel(LMConfig(**SMALL | changes))
    for p in model.parameters(): torch.nn.init.normal_(p, std=.3)
    return model

@st.composite
def shapes(draw):
    "Changes of SMALL that make sense together: grouped heads, an inner width, a head of its own, any kernel."
    size, groups, per_group = draw(st.integers(1, 6)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    heads = groups*per_group
    return dict(n_layer=draw(st.integers(1, 3)), n_head=heads, n_kv_head=groups, n_embd=size*heads,
                n_inner=draw(st.sampled_from([None, 5])), bias=draw(st.booleans()),
                qkv_bias=draw(st.sampled_from([None, True, False])), tie_embeddings=draw(st.booleans()),
                attention=draw(st.sampled_from(['fused', 'reference', 'tiled'])))

@st.composite
def models(draw, least=2, most=12):
    "A random model in evaluation mode, with a window of `least` to `most` tokens."
    return small_model(draw(st.integers(0, 99)), block_size=draw(st.integers(least, most)),
                       **draw(shapes())).eval()

def tokens(B, T, seed=0): return torch.randint(11, (B, T), generator=seeded(seed))

def cuts(draw, T):
    "Random chunk sizes that add up to T."
    ends = sorted(draw(st.sets(st.integers(1, T-1), max_size=T-1)) | {T}) if T > 1 else [1]
    return [b-a for a, b in zip([0, *ends], ends)]

def close(a, b, atol=1e-4): return torch.allclose(a, b, atol=atol, rtol=1e-4)

# --- failures at random places

class Boom(Exception): "What a test throws."

class FailingOperation(TorchDispatchMode):
    "The n-th operation of PyTorch fails."
    def __init__(self, n): super().__init__(); self.left = n
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == 0: raise Boom
        return func(*args, **(kwargs or {}))

@contextmanager
def interrupt(n):
    "Ctrl-C before the n-th line of tinylm that runs inside the block; it may run to its end before that."
    left = [n]
    def trace(frame, event, _):
        if '/tinylm/' not in frame.f_code.co_filename: return None
        if event == 'line':
            left[0] -= 1
            if left[0] == 0: raise KeyboardInterrupt
        return trace
    before = sys.gettrace()
    sys.settrace(trace)
    try: yield
    finally: sys.settrace(before)

@contextmanager
def failing(how, n):
    "One of the two, and the exception ends here."
    try:
        with (FailingOperation(n) if how == 'operation' else interrupt(n)): yield
    except (Boom, KeyboardInterrupt): pass
