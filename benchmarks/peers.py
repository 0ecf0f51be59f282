"""tinylm beside other engines, with the same weights, in one run.

    pip install transformers            # and, if you like, ctranslate2, or llama-cpp-python with gguf
    python benchmarks/peers.py --size S
    python benchmarks/peers.py --size L --prompt 512 --new 32 --static
    python benchmarks/peers.py --size M --train
    python benchmarks/peers.py --size M --train --nanogpt nanoGPT/model.py
    python benchmarks/peers.py --checkpoint SmolLM2-135M-Instruct.Q4_1.gguf --prompt 128
    python benchmarks/peers.py --all    # the table of the page about benchmarks, in a quarter of an hour

Random weights of a GPT-2 shape, or those of a file, go into every engine that can be imported, as float32.
The engines take turns, so that a slow minute of the machine hits all of them. Printed: medians, their
spread, and ratios to transformers' `generate` with its dynamic cache. Greedy tokens are compared with those
of transformers. Quote the ratios. The time to the first token is prefill, that of each later one is decode.
ctranslate2 and llama.cpp bring thread pools of their own, which slow everything else in the process: each
runs in a process of its own, and before each turn there is a pause, in which idle threads stop spinning.
tinylm has three rows: PyTorch alone, compiled loops (lesson 14), and those with int8 weights; llama.cpp has
two. The text of eight bits may differ. llama.cpp does not repack its eight bits here: where this was written,
in a virtual machine with AMX, it crashed when it did. benchmarks/busy.py asks what is left beside a busy
neighbour.

With --train, a training step (forward, backward, AdamW) is compared with that of transformers, and with
that of nanoGPT, as it is and compiled, where its model.py is given: it is run, so look at what you give.
"""
import argparse, json, multiprocessing, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import cross_entropy

from tinylm import (CharTokenizer, LanguageModel, check_count, data_dir, family_of, load_model, native_reason,
    quantize_, to_gguf, to_hf)
from tinylm.bench import SIZES
from tinylm.cost import read_time
from tinylm.pretrained import REAL_MODEL

COLUMNS = { # of the table that --all makes
    'S': dict(size='S'), 'M': dict(size='M'), 'L': dict(size='L'), 'L, 512': dict(size='L', prompt=512),
    'SmolLM2': dict(prompt=128),
}

def to_transformers(model):
    "The same weights in transformers, which shall write on whatever it has written."
    from transformers import AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        to_hf(model, folder)
        peer = AutoModelForCausalLM.from_pretrained(folder).eval()
    peer.config.eos_token_id = peer.generation_config.eos_token_id = None
    x = torch.randint(model.config.vocab_size, (1, 8))
    with torch.no_grad(): same = torch.allclose(peer(x).logits, model(x)[0], atol=1e-3)
    assert same, 'the peer has other weights'
    return peer

def to_ctranslate2(model, folder):
    "A ctranslate2 folder: its converter reads the GPT-2 of transformers, and wants a vocabulary beside it."
    import ctranslate2
    to_transformers(model).save_pretrained(folder/'hf')
    (folder/'hf'/'vocab.json').write_text(json.dumps({f't{i}': i for i in range(model.config.vocab_size)}))

    class Converter(ctranslate2.converters.TransformersConverter):
        def load_tokenizer(self, *_, **__):
            class Words:
                unk_token = bos_token = eos_token = 't0'
                def get_vocab(self): return {f't{i}': i for i in range(model.config.vocab_size)}
                def __len__(self): return model.config.vocab_size
            return Words()
    Converter(str(folder/'hf')).convert(str(folder/'ct2'), force=True)
    return folder/'ct2'

def ctranslate2_engine(path, threads, block_size):
    import ctranslate2
    engine = ctranslate2.Generator(str(path), device='cpu', intra_threads=threads, compute_type='float32')
    def generate(ids, n):
        out = engine.generate_batch([[f't{i}' for i in ids]], max_length=n, min_length=n, sampling_topk=1,
                                    include_prompt_in_result=False)[0]
        return ids + out.sequences_ids[0]
    return generate

def to_q8(path):
    "The same file with eight bits a weight, as llama.cpp makes it."
    import llama_cpp
    from llama_cpp._logger import set_verbose
    set_verbose(False)
    how, small = llama_cpp.llama_model_quantize_default_params(), path.with_suffix('.q8')
    how.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    if llama_cpp.llama_model_quantize(str(path).encode(), str(small).encode(), how): raise OSError(path)
    return small

def llama_engine(path, threads, block_size, plain=False):
    import llama_cpp
    defaults = llama_cpp.llama_model_default_params
    def without_repacking(): p = defaults(); p.use_extra_bufts = False; return p
    if plain: llama_cpp.llama_cpp.llama_model_default_params = without_repacking
    engine = llama_cpp.Llama(str(path), n_ctx=block_size, n_threads=threads, n_threads_batch=threads,
                             verbose=False)
    def generate(ids, n):
        engine.reset()
        stream, out = engine.generate(ids, temp=0.), []
        while len(out) < n: out.append(next(stream))
        return ids + out
    return generate

def _serve(pipe, make, *args):
    engine = make(*args)
    while True:
        try: ids, n = pipe.recv()
        except EOFError: return                        # the other side has finished
        start = time.perf_counter(); out = engine(ids, n)
        pipe.send((time.perf_counter() - start, out))

class InItsOwnProcess:
    "An engine in a process of its own; it is timed over there."
    def __init__(self, make, *args):
        self.pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context('spawn')
        context.Process(target=_serve, args=(other, make, *args), daemon=True).start()

    def __call__(self, idx, n):
        self.pipe.send((idx[0].tolist(), n))
        seconds, out = self.pipe.recv()
        return seconds, torch.tensor([out])

def timed(engine):
    def run(idx, n):
        start = time.perf_counter(); out = engine(idx, n)
        return time.perf_counter() - start, out
    return run

def engines(model, args, folder):
    "Name -> function of (prompt, n) that returns the seconds and the whole text, greedily."
    def ours(m, compile): return timed(lambda idx, n: m.decode(idx, n, temperature=0, compile=compile))
    yield 'tinylm eager', ours(model, False)
    if why := native_reason(model): print(f'no compiled loops: {why}')
    else:
        yield 'tinylm native', ours(model, True)
        yield 'tinylm native int8', ours(quantize_(deepcopy(model)), True)
    peer = to_transformers(model)
    plain = dict(do_sample=False, pad_token_id=0)
    def generate(idx, n, **more):
        with torch.inference_mode():
            return peer.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=n,
                                 **plain, **more)
    yield 'transformers', timed(generate)
    if args.static:
        yield 'transformers static', timed(lambda idx, n: generate(idx, n, cache_implementation='static'))
    about = torch.get_num_threads(), args.prompt + args.new
    if find_spec('ctranslate2') and family_of(model.config) == 'gpt2':
        yield 'ctranslate2', InItsOwnProcess(ctranslate2_engine, to_ctranslate2(model, folder), *about)
    if find_spec('llama_cpp') and find_spec('gguf'):
        to_gguf(model, folder/'model.gguf')
        yield 'llama.cpp', InItsOwnProcess(llama_engine, folder/'model.gguf', *about)
        yield 'llama.cpp q8_0', InItsOwnProcess(llama_engine, to_q8(folder/'model.gguf'), *about, True)

def compare_decoding(model, args, folder):
    "Measure and print; name -> ratios to transformers, a pair of runs each."
    idx = torch.randint(model.config.vocab_size, (1, args.prompt))
    ways = dict(engines(model, args, folder))
    texts = {name: engine(idx, args.new)[1] for name, engine in ways.items()}      # warm-up
    n_bytes = int(model.config.pass_cost(1, args.prompt + args.new//2, last_only=True).n_bytes)
    first, whole, read = {n: [] for n in ways}, {n: [] for n in ways}, []
    for _ in range(args.repeats):
        read.append(read_time(n_bytes))
        for name, engine in ways.items():
            time.sleep(.5)
            for times, n in ((first, 1), (whole, args.new)):
                times[name].append(min(engine(idx, n)[0] for _ in range(3)))
    per_token = {n: [(w - f)/(args.new - 1) for w, f in zip(whole[n], first[n])] for n in ways}
    print(f'{args.checkpoint or "size " + args.size}, prompt {args.prompt}, {args.new} new tokens, '
          f'{torch.get_num_threads()} threads, torch {torch.__version__}; ratios to transformers, pairwise')
    print(f'{"engine":20} {"tokens/s":>9} {"ratio":>6} {"min":>6} {"max":>6}   {"TTFT ms":>8} {"ratio":>6}   '
          f'same text')
    ratios = {n: [b/a for a, b in zip(per_token[n], per_token['transformers'])] for n in ways}
    for n, r in ratios.items():
        t = [b/a for a, b in zip(first[n], first['transformers'])]
        same = (texts[n] == texts['transformers']).float().mean().item()
        print(f'{n:20} {1/median(per_token[n]):9,.0f} {median(r):6.2f} {min(r):6.2f} {max(r):6.2f}   '
              f'{1e3*median(first[n]):8.1f} {median(t):6.2f}   {same:.0%}', flush=True)
    print(f'a token in float32 reads {n_bytes/1e6:.1f} MB; PyTorch reads as many at '
          f'{n_bytes/median(read)/1e9:.1f} GB/s')
    for n in ('tinylm eager', 'tinylm native', 'llama.cpp'):
        share = [r/t for r, t in zip(read, per_token.get(n, []))]
        if share: print(f'{n:20} {median(share):.0%} of that ({min(share):.0%} to {max(share):.0%})')
    return ratios

def compare_all(args):
    "Column after column, each in a process of its own; then all of them in a table."
    table, real = {}, data_dir()/REAL_MODEL
    for name, change in COLUMNS.items():
        if name == 'SmolLM2':
            if not real.exists(): print('SmolLM2 is left out: `make real-model` fetches it'); continue
            change = change | dict(checkpoint=str(real))
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
            table[name] = pool.submit(decoding, argparse.Namespace(**vars(args) | change)).result()
    print('decode, ratios to transformers: the median of the pairs (smallest-largest)')
    print(f'{"":19}' + ''.join(f'{name:>18}' for name in table))
    short = lambda x: f'{x:.2f}'[:4]
    for n in dict.fromkeys(n for column in table.values() for n in column):
        cells = [f'{short(median(r))} ({short(min(r))}-{short(max(r))})' if r else '-'
                 for r in (column.get(n) for column in table.values())]
        print(f'{n:19}' + ''.join(f'{cell:>18}' for cell in cells))

def training_step(model, loss_of):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    def step(x, y):
        optimizer.zero_grad(); loss_of(x, y).backward(); optimizer.step()
    return step

def nanogpt_steps(path, c):
    "Training steps of nanoGPT's model in this shape."
    spec = spec_from_file_location('nanogpt', path)
    spec.loader.exec_module(nano := module_from_spec(spec))
    for name, prepare in (('nanoGPT', lambda peer: peer), ('nanoGPT compiled', torch.compile)):
        shape = nano.GPTConfig(c.block_size, c.vocab_size, c.n_layer, c.n_head, c.n_embd, 0., c.bias)
        peer = prepare(nano.GPT(shape).train())
        yield name, training_step(peer, lambda x, y, peer=peer: peer(x, y)[1])

def compare_training(args):
    model = prepared(args)
    peer, c = to_transformers(model), model.config
    def loss_of_peer(x, y): return cross_entropy(peer(x).logits.flatten(0, 1), y.flatten())
    ways = {'tinylm': training_step(model.train(), lambda x, y: model.prefill(x, y)[1]),
            'transformers': training_step(peer.train(), loss_of_peer)}
    if args.nanogpt: ways |= nanogpt_steps(args.nanogpt, c)
    x, y = torch.randint(c.vocab_size, (2, args.batch, c.block_size))
    seconds = {n: [] for n in ways}
    for round_ in range(args.repeats + 1):
        for name, step in ways.items():
            start = time.perf_counter(); step(x, y)
            if round_: seconds[name].append(time.perf_counter() - start)            # the first is the warm-up
    print(f'{args.checkpoint or "size " + args.size}, training step of {args.batch} × {c.block_size} tokens, '
          f'{torch.get_num_threads()} threads, torch {torch.__version__}')
    for n in ways:
        r = [b/a for a, b in zip(seconds[n], seconds['transformers'])]
        print(f'{n:20} {x.numel()/median(seconds[n]):9,.0f} tokens/s   '
              f'ratio {median(r):.2f} ({min(r):.2f} to {max(r):.2f})')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', choices=SIZES, default='S')
    p.add_argument('--checkpoint', help='a model in any format that tinylm reads, in place of --size')
    p.add_argument('--prompt', type=int, default=16, help='tokens that are read first (%(default)s)')
    p.add_argument('--new', type=int, default=40, help='tokens that are written (%(default)s)')
    p.add_argument('--repeats', type=int, default=7, help='rounds (%(default)s)')
    p.add_argument('--static', action='store_true', help="also transformers' static cache")
    p.add_argument('--train', action='store_true', help='compare a training step in place of decoding')
    p.add_argument('--nanogpt', metavar='FILE', help="with --train: nanoGPT's model.py")
    p.add_argument('--batch', type=int, default=12, help='windows in a training step (%(default)s)')
    p.add_argument('--all', action='store_true', help='all sizes and the real model of lesson 12, in a table')
    args = p.parse_args()
    try: compare_all(args) if args.all else compare_training(args) if args.train else decoding(args)
    except (ValueError, OSError, ImportError) as e: p.error(str(e))

def decoding(args):
    model = prepared(args)
    with tempfile.TemporaryDirectory() as folder: return compare_decoding(model, args, Path(folder))

def prepared(args):
    "The model that all shall run, and numbers that make sense for it."
    torch.manual_seed(0)
    for name, least in dict(prompt=1, new=2, repeats=1, batch=1).items():
        check_count(name, getattr(args, name), least)
    model = load_model(args.checkpoint) if args.checkpoint else toy(SIZES[args.size])
    family_of(model.config)                       # what transformers does not know says so
    check_count('prompt + new', args.prompt + args.new, most=model.config.block_size)
    return model

def toy(config):
    "Random weights, and a vocabulary for those who ask for one."
    chars = ''.join(map(chr, range(256, 256 + config.vocab_size)))
    model = LanguageModel(config, CharTokenizer(chars)).eval()
    for q in model.parameters():                  # so that greedy texts are not one token repeated
        if q.ndim > 1: torch.nn.init.normal_(q, std=.05)
    return model

if __name__ == '__main__': main()
