"Teams of two processes: the same curve, the same file, and one line when something happens to one of them."
import json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hypothesis import given, strategies as st

from helpers import quick, run, seeded, start
from ranks import CASES, KINDS, RECIPE, SHAPE, TEXT, losses, trainer
import tinylm
from tinylm import (TOKENIZERS, LanguageModel, LMConfig, Ranks, Team, TokenFile, Trainer, check_device,
                    get_batch, join_team, read_run, read_safetensors, train, train_val_split, write_tokens)
from tinylm.cli import main

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(map(str, (ROOT, ROOT/'tests')))}
TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
TINY = ('--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 4 --eval-every 5 --eval-windows 4 '
        '--steps 12 --corpus text.txt --out m.safetensors').split()

def launch(*words, more=()):
    return run(*TORCHRUN, *more, ROOT/'tests'/'ranks.py', *words, env=ENV, timeout=120)

def lines(done): return [l for l in done.stderr.splitlines() if l.startswith('tinylm:')]

@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('text.txt').write_text('the cat sat on the mat and looked at the moon.\n'*60)
    return tmp_path

# --- who reads what

@quick
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_the_processes_read_each_window_of_a_batch_once(n, size, seed):
    class Fake(Ranks): rank, size = 0, 1
    recipe, parts = type('', (), dict(batch_size=n*size, seed=seed)), []
    whole = get_batch(TEXT, n*size, 8, seeded(seed))[0]
    for rank in range(size):
        team = Fake(); Fake.rank, Fake.size = rank, size
        rows = team.rows(type('', (), dict(config=recipe, step=3)))
        parts.append(get_batch(TEXT, n*size, 8, seeded(seed), rows)[0])
    assert torch.equal(torch.cat(parts), whole)

@pytest.mark.parametrize('accumulate', [3, 0, 1.5])
def test_pieces_that_are_none_are_refused(accumulate):
    with pytest.raises(ValueError, match=f'accumulate .*{accumulate}'):
        Trainer(LanguageModel(SHAPE), TEXT, TEXT, RECIPE, team=Team(accumulate=accumulate))

@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('accumulate', [2, 8])
def test_a_batch_in_pieces_is_a_batch(name, accumulate):
    whole, pieces = (losses(trainer(CASES[name], Team(accumulate=n)), 8) for n in (1, accumulate))
    assert whole == pytest.approx(pieces, abs=1e-4) and whole[-1] != whole[0]

def test_sixteen_bits_are_near_and_not_the_same():
    wide, narrow = (losses(trainer(CASES['muon'], Team(bfloat16=b)), 8) for b in (False, True))
    assert wide != narrow and wide == pytest.approx(narrow, abs=.05)

@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile needs a compiler')
def test_a_compiled_pass_is_the_same():
    plain, made = (losses(trainer(CASES['adamw'], Team(compile=c)), 5) for c in (False, True))
    assert plain == pytest.approx(made, abs=1e-5)

def test_nobody_to_share_with_is_said():
    with pytest.raises(ValueError, match='nobody to share the model with: start it by torchrun'):
        with join_team(shard=True): pass
    with pytest.raises(ValueError, match='timeout is 0'):
        with join_team(timeout=0): pass
    with join_team(accumulate=2) as team: assert type(team) is Team and team.accumulate == 2

def test_auto_is_a_device():
    want = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else 'cpu'
    assert check_device('auto').type == want

# --- the same run, whoever computes it

@pytest.fixture(scope='module')
def told(tmp_path_factory):
    "What two processes did, and where their files are."
    folder = tmp_path_factory.mktemp('equal')
    for name, case in CASES.items():
        one = trainer(case); losses(one, 10); one.record(); one.save(folder/f'{name}.one.safetensors')
    done = launch('equal', folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder/'told.json').read_text())

@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_the_curve_of_two_processes_is_that_of_one(told, name):
    want = losses(trainer(CASES[name]), 20)
    got = {kind: told[1][f'{kind} {name}'] for kind in KINDS if f'{kind} {name}' in told[1]}
    assert {'ddp', 'fsdp'} <= got.keys() and want[-1] < want[0]
    for kind, each in got.items(): assert each == pytest.approx(want, abs=1e-5), kind

@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_a_checkpoint_is_the_same_file_for_any_number_and_kind(told, name):
    folder, _ = told
    want = read_run(folder/f'{name}.one.safetensors')
    files = [f for f in sorted(folder.glob(f'{name}.*')) if '.one.' not in f.name]
    assert len(files) >= 2 and len(list(folder.glob('.*'))) == 0
    for file in files:
        got = read_run(file)
        assert got.model == want.model and got.recipe == want.recipe and got.text == want.text
        assert list(got.tensors) == list(want.tensors) and file.stat().st_size == pytest.approx(
            (folder/f'{name}.one.safetensors').stat().st_size, rel=.01)
        for k, t in want.tensors.items():
            assert torch.allclose(got.tensors[k].double(), t.double(), atol=2e-4), (file.name, k)

@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_a_run_goes_on_with_another_number_and_kind(told, name):
    folder, said = told
    want, seen = losses(trainer(CASES[name]), 20)[10:], 0
    for case, each in said.items():
        if f' {name} after ' in case: seen += 1; assert each == pytest.approx(want, abs=1e-5), case
    assert seen == 5                                   # one -> two, ddp -> fsdp, fsdp -> fsdp, …
    for file in folder.glob(f'{name}.*'):              # two -> one
        assert losses(trainer(CASES[name], seed=9).load(file), 10) == pytest.approx(want, abs=1e-5)

@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_each_process_drops_its_own_and_again_the_same(told, kind):
    said = told[1]
    assert said[f'{kind} dropout'] == said[f'{kind} dropout again']

# --- something happens to one of them

def kept(step):
    "The files of a run are whole, and nothing else is there."
    run = read_run('m.training.safetensors')
    assert run.progress['step'] == step
    LanguageModel.from_safetensors('m.safetensors')
    assert not [p.name for p in Path().iterdir() if p.name.startswith('.')]

@pytest.mark.slow
def test_a_killed_process_is_named_and_the_launcher_goes_on(folder, capsys):
    assert main(['train', *TINY[:-1], 'one.safetensors']) == 0
    done = launch('die', 'train', *TINY, more=['--max-restarts', '1'])
    assert done.returncode == 0, done.stderr
    assert len(lines(done)) == 1 and 'rank 1: no answer' in lines(done)[0], done.stderr
    kept(12)
    one, two = (read_safetensors(f)[0] for f in ('one.safetensors', 'm.safetensors'))
    assert all(torch.allclose(one[k], two[k], atol=1e-4) for k in one)
    assert [h['step'] for h in read_run('m.training.safetensors').progress['history']] == [0, 5, 10, 12]

@pytest.mark.slow
@pytest.mark.parametrize('mode, says', [('hang', 'rank 1: no answer'), ('full', 'rank 0: .*File too large'),
                                        ('broken', 'rank 1: something of its own')])
def test_one_line_names_the_process_that_is_at_fault(folder, mode, says):
    done = launch(mode, 'train', *TINY, '--timeout', 4, *['--shard']*(mode == 'full'))
    assert done.returncode != 0 and len(lines(done)) == 1, done.stderr
    assert re.search(says, lines(done)[0]) and '--resume goes on from there' in lines(done)[0], lines(done)
    kept(5)

@pytest.mark.slow
def test_an_interrupt_is_told_once_and_the_run_goes_on_alone(folder, capsys):
    words = [*TINY, '--steps', '100000']
    with start(*TORCHRUN, '-m', 'tinylm', 'train', *words, env=ENV, text=True, stdout=subprocess.PIPE,
               stderr=subprocess.PIPE, start_new_session=True) as proc:
        end = time.time() + 90
        while not Path('m.safetensors').exists():
            assert time.time() < end and proc.poll() is None
            time.sleep(.05)
        os.killpg(proc.pid, signal.SIGINT)
        _, err = proc.communicate(timeout=60)
    told = [l for l in err.splitlines() if l.startswith('tinylm:')]
    assert len(told) == 1 and told[0].startswith('tinylm: stopped; m.training.safetensors holds'), err
    kept(read_run('m.training.safetensors').progress['step'])

@pytest.mark.slow
def test_what_is_wrong_with_the_words_is_said_once(folder):
    done = launch('broken', 'train', *TINY[:-2], '--out', 'm.safetensors', '--batch-size', 5)
    assert len(lines(done)) == 1 and 'batch_size 5 is no multiple of 2 processes' in lines(done)[0]
    assert [p.name for p in Path().iterdir()] == ['text.txt']

# --- texts larger than the memory

def stopping_encoder(patch, n):
    "Ctrl-C before piece n, once; the pieces that were encoded, and None for it."
    make, seen = tinylm.distributed._encoder, []
    def encoder(tokenizer):
        encode = make(tokenizer)
        def stopping(piece):
            if len(seen) == n: seen.append(None); raise KeyboardInterrupt
            seen.append(piece)
            return encode(piece)
        return stopping
    patch.setattr('tinylm.distributed._encoder', encoder)
    return seen

words = st.text(st.sampled_from('ab \n€😀é'), min_size=1, max_size=200)

@quick
@given(words, st.integers(16, 64), st.integers(0, 5))
def test_a_file_of_tokens_is_the_text_whatever_the_pieces_and_wherever_it_stopped(tmp_path_factory, text,
                                                                                  size, n):
    folder = tmp_path_factory.mktemp('t')
    (folder/'t.txt').write_text(text, newline='')
    with pytest.MonkeyPatch.context() as patch:
        seen = stopping_encoder(patch, n)
        try: write_tokens(folder/'t.txt', folder/'t.tokens', size=size)
        except KeyboardInterrupt: pass
        assert (None in seen) != (folder/'t.tokens').exists()
        if None in seen: write_tokens(folder/'t.txt', folder/'t.tokens', size=size)
        assert ''.join(filter(None, seen)) == text     # nothing is encoded twice
    file = TokenFile(folder/'t.tokens')
    fresh = write_tokens(folder/'t.txt', folder/'u.tokens', size=size)
    for each in (file, fresh): assert each.tokenizer.decode(each[torch.arange(len(text))]) == text
    assert (folder/'t.tokens').read_bytes() == (folder/'u.tokens').read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ['t.tokens', 't.txt', 'u.tokens']

def test_another_text_begins_anew(folder, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopping_encoder(patch, 1)
        write_tokens('text.txt', 't.tokens', size=1000)
    assert not Path('t.tokens').exists() and Path('t.tokens.part').exists()
    Path('text.txt').write_text(text := 'another text\n'*300)
    file = write_tokens('text.txt', 't.tokens', size=1000)
    assert file.tokenizer.decode(file[torch.arange(len(file))]) == text
    assert sorted(p.name for p in Path().iterdir()) == ['t.tokens', 'text.txt']

@pytest.mark.parametrize('V, dtype', [(256, 'uint8'), (257, 'uint16'), (2**16, 'uint16'),
                                      (2**16 + 1, 'int32')])
def test_ids_are_as_narrow_as_they_can_be(folder, V, dtype):
    class Wide:
        vocab_size = V
        def encode(self, text): return [V-1]*len(text)
        def decode(self, ids): return 'x'*len(ids)
        def to_json(self): return dict(kind='wide')
    TOKENIZERS['wide'] = lambda about: Wide()
    try: file = write_tokens('text.txt', 't.tokens', Wide(), 100)
    finally: del TOKENIZERS['wide']
    assert str(file.ids.dtype) == dtype and file[torch.tensor([[0], [5]])].tolist() == [[V-1], [V-1]]

def test_training_reads_a_file_as_it_reads_the_ids(folder, capsys):
    file = write_tokens('text.txt', 't.tokens')
    ids = torch.tensor(file.tokenizer.encode(Path('text.txt').read_text()))
    shape = LMConfig(vocab_size=file.tokenizer.vocab_size, block_size=8, n_layer=1, n_embd=16, n_head=2)
    runs = []
    for text in (ids, file):
        torch.manual_seed(0)
        runs.append(train(LanguageModel(shape), *train_val_split(text), RECIPE, callback=lambda run: None))
    assert [(h['loss'], h['val_loss']) for h in runs[0]] == [(h['loss'], h['val_loss']) for h in runs[1]]

def test_the_command_writes_tokens_trains_on_them_and_goes_on(folder, capsys):
    words = [*TINY, '--corpus', 'text.txt.tokens']
    assert main(['tokens', '--corpus', 'text.txt']) == 0
    assert '2,820 tokens, 15 different' in capsys.readouterr().out
    assert main(['tokens', '--corpus', 'text.txt']) == 2 and '--overwrite' in capsys.readouterr().err
    assert main(['train', *words]) == 0
    assert main(['train', '--corpus', 'text.txt', *TINY, '--out', 'n.safetensors']) == 0
    assert Path('m.safetensors').read_bytes() == Path('n.safetensors').read_bytes()
    assert main(['train', *words, '--resume']) == 0
    Path('text.txt').write_text('the dog.\n'*500)
    assert main(['tokens', '--corpus', 'text.txt', '--overwrite']) == 0
    capsys.readouterr()
    assert main(['train', *words, '--resume']) == 2
    assert 'text.txt.tokens' in (err := capsys.readouterr().err) and err.count('\n') == 1

@pytest.mark.parametrize('text, says', [(b'', 'is empty'), (b'a\xff', 'byte 1 is 0xff'), (b'a\0b', 'NUL'),
                                        (b'abc\xe2\x82', 'byte 3 is 0xe2')])
def test_what_is_no_text_is_refused_and_leaves_nothing(folder, text, says):
    Path('bad.txt').write_bytes(text)
    with pytest.raises(ValueError, match=f'bad.txt .*{says}'): write_tokens('bad.txt', 't.tokens')
    with pytest.raises(FileNotFoundError, match='no text file nix'): write_tokens('nix', 't.tokens')
    assert sorted(p.name for p in Path().iterdir()) == ['bad.txt', 'text.txt']

@quick
@given(st.data())
def test_a_damaged_file_of_tokens_is_refused_in_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('t')
    (folder/'t.txt').write_text('abc\n'*9)
    write_tokens(folder/'t.txt', folder/'t.tokens')
    raw = (folder/'t.tokens').read_bytes()
    (folder/'t.tokens').write_bytes(raw[:data.draw(st.integers(0, len(raw)-1))])
    with pytest.raises(ValueError, match='t.tokens is no file of tokens') as e: TokenFile(folder/'t.tokens')
    assert '\n' not in str(e.value)
    with pytest.raises(FileNotFoundError): TokenFile(folder/'nix')

def test_another_vocabulary_is_refused(folder):
    file = write_tokens('text.txt', 't.tokens')
    with pytest.raises(ValueError, match='t.tokens is written with 15 different tokens, and the model has 9'):
        Trainer(LanguageModel(SHAPE), file, file)
