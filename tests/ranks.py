"What the processes of a team do in tests: `torchrun --nproc-per-node 2 tests/ranks.py MODE …`."
import json, os, resource, signal, sys, time
from dataclasses import replace
from pathlib import Path

import torch
from tinylm import LanguageModel, LMConfig, TrainConfig, Trainer, join_team
from tinylm.cli import main

TEXT = torch.randint(9, (2000,), generator=torch.Generator().manual_seed(0))
SHAPE = LMConfig(vocab_size=9, block_size=8, n_layer=2, n_head=3, n_embd=21)          # pieces of odd sizes
MODERN = dict(norm='rms', mlp='swiglu', positions='rotary', qk_norm=True, n_kv_head=1, bias=False, n_embd=24,
              tie_embeddings=False)
RECIPE = TrainConfig(steps=20, batch_size=8, eval_every=5, eval_windows=4, warmup=3)
KINDS = dict(ddp=dict(shard=False), fsdp=dict(shard=True), ddp2=dict(shard=False, accumulate=2),
             fsdp2=dict(shard=True, accumulate=2))
CASES = dict(adamw=dict(recipe=replace(RECIPE, optimizer='adamw'), shape=SHAPE),
             muon=dict(recipe=RECIPE, shape=SHAPE),
             modern=dict(recipe=RECIPE, shape=replace(SHAPE, **MODERN)))
DROPPED = dict(recipe=RECIPE, shape=replace(SHAPE, dropout=.3))

def trainer(case, team=None, seed=0):
    torch.manual_seed(seed)
    return Trainer(LanguageModel(case['shape']), TEXT, TEXT, case['recipe'], team=team)

def losses(run, n):
    each = []
    for _ in range(n): run.update(); each.append(run.loss)
    return each

def equalities(folder):
    "The same run by each kind of team; saved after 10 steps, and taken over from others at that point."
    told = {}
    for kind, how in KINDS.items():
        with join_team(**how) as team:
            for name, case in CASES.items():
                if kind.endswith('2') and name != 'muon': continue
                run = trainer(case, team)
                told[f'{kind} {name}'] = losses(run, 10)
                run.record()
                run.save(folder/f'{name}.{kind}.safetensors')
                told[f'{kind} {name}'] += losses(run, 10)
                for other in () if kind.endswith('2') else ('one', *KINDS):
                    file = folder/f'{name}.{other}.safetensors'
                    if file.exists():
                        told[f'{kind} {name} after {other}'] = losses(trainer(case, team, 9).load(file), 10)
            run = trainer(DROPPED, team); run.update(); run.update()
            run.save(folder/'dropped.safetensors')
            told[f'{kind} dropout'] = losses(run, 3)
            again = trainer(DROPPED, team, 9).load(folder/'dropped.safetensors')
            told[f'{kind} dropout again'] = losses(again, 3)
            if team.rank == 0: (folder/'told.json').write_text(json.dumps(told))

def at(step, work):
    "The second process does this when it has come so far; but only in the first try."
    update = Trainer.update
    def disturbed(run):
        if run.step == step and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0': work(run)
        update(run)
    Trainer.update = disturbed

def only(rank, work): return lambda run: work() if run.team.rank == rank else None

def full(): resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
def broken(): raise ValueError('something of its own')

MODES = dict(die=(7, 1, lambda: os.kill(os.getpid(), signal.SIGKILL)), hang=(7, 1, lambda: time.sleep(1000)),
             full=(7, 0, full), broken=(7, 1, broken), slow=(7, 0, lambda: time.sleep(.2)))

if __name__ == '__main__':
    mode, *words = sys.argv[1:]
    if mode == 'equal': equalities(Path(words[0]))
    else:
        step, rank, work = MODES[mode]
        at(step, only(rank, work))
        sys.exit(main(words))
