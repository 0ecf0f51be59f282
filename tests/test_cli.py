"The command line as a person meets it: `main` in this process for speed, real ones where signals matter."
import io, json, os, pty, re, select, shutil, signal, subprocess, sys, threading, time, unicodedata
from pathlib import Path

import pytest
import torch

from helpers import CHATML, run_python, seeded, start_python
from tinylm import (CharTokenizer, LanguageModel, LMConfig, TrainConfig, chat, read_run, read_safetensors,
                    to_gguf, to_hf, train_subwords)
from tinylm.cli import main

TINY = ('--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 4 --eval-every 10 '
        '--eval-windows 4').split()
TEXT = 'the cat sat on the mat and looked at the moon.\n' * 60

@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('text.txt').write_text(TEXT)
    return tmp_path

def run(capsys, *words):
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err

def fails(capsys, *words):
    "The one line on stderr of a command that must fail."
    code, out, err = run(capsys, *words)
    lines = [l for l in err.splitlines() if l.startswith('tinylm: ')]
    assert code == 2 and len(lines) == 1 and err.endswith(lines[0] + '\n') and 'Traceback' not in err
    return lines[0]

ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}

def process(*words):
    return start_python('-m', 'tinylm', *words, text=True, env=ENV, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE)

def wait_for(path, proc, seconds=120):
    end = time.time() + seconds
    while not path.exists():
        assert proc.poll() is None and time.time() < end, proc.stderr.read()
        time.sleep(.01)

def test_train_then_generate(capsys):
    code, out, _ = run(capsys, 'train', '--corpus', 'text.txt', '--steps', 20, *TINY)
    assert code == 0 and 'validation loss' in out and Path('model.safetensors').exists()
    code, out, _ = run(capsys, 'generate', '--checkpoint', 'model.safetensors', '--prompt', 'the ',
                       '--max-tokens', 30, '--seed', 1)
    assert code == 0 and out.startswith('the ') and len(out) == 4 + 30 + 1
    again = run(capsys, 'generate', '--checkpoint', 'model.safetensors', '--prompt', 'the ', '--max-tokens',
                30, '--seed', 1)[1]
    other = run(capsys, 'generate', '--checkpoint', 'model.safetensors', '--prompt', 'the ', '--max-tokens',
                30, '--seed', 2)[1]
    assert again == out != other

def test_generate_is_decode(capsys):
    torch.manual_seed(0)
    model = LanguageModel(LMConfig(vocab_size=27, n_layer=1, n_embd=16),
                          CharTokenizer('abcdefghijklmnopqrstuvwxyz '))
    model.save_safetensors('m.safetensors')
    want = model.decode(torch.tensor([model.tokenizer.encode('hello')]), 20, temperature=.5, top_k=9,
                        top_p=.8, generator=seeded(4))
    _, out, _ = run(capsys, 'generate', '--checkpoint', 'm.safetensors', '--prompt', 'hello', '--max-tokens',
                    20, '--temperature', .5, '--top-k', 9, '--top-p', .8, '--seed', 4)
    assert out == model.tokenizer.decode(want[0]) + '\n'

def test_the_same_command_gives_the_same_model(capsys):
    files = []
    for name in ('a.safetensors', 'b.safetensors'):
        run(capsys, 'train', '--corpus', 'text.txt', '--steps', 5, *TINY, '--out', name)
        files.append(Path(name).read_bytes())
    assert files[0] == files[1]

def test_a_model_is_not_overwritten_by_accident(capsys):
    train = ['train', '--corpus', 'text.txt', '--steps', 5, *TINY]
    run(capsys, *train)
    before = {p.name: p.read_bytes() for p in Path().iterdir()}
    assert 'exists: --resume goes on' in fails(capsys, *train)
    assert {p.name: p.read_bytes() for p in Path().iterdir()} == before
    assert run(capsys, *train, '--seed', 3, '--overwrite')[0] == 0
    assert Path('model.safetensors').read_bytes() != before['model.safetensors']

@pytest.mark.slow
def test_demo_does_the_whole_job(capsys):
    code, out, _ = run(capsys, 'demo', '--steps', 2)
    assert code == 0 and Path('demo.safetensors').exists()
    counted, trained = out.index('only counts letters writes'), out.index('It writes')
    assert counted < out.index('Its loss is') < out.index('validation loss') < trained
    assert len(re.findall(r'\d\.\d{3} nats', out)) == 2
    assert [line.split()[0] for line in out.splitlines()
            if line.startswith(('prefill', 'decode'))] == ['prefill', 'decode']

@pytest.mark.slow
def test_bench_writes_what_it_measured(capsys):
    LanguageModel(LMConfig(vocab_size=3, block_size=16, n_layer=1,
                           n_embd=16)).save_safetensors('m.safetensors')
    code, out, _ = run(capsys, 'bench', '--checkpoint', 'm.safetensors', '--prompt', 4, '--json', 'b.json')
    assert code == 0 and 'cached' in out
    assert json.loads(Path('b.json').read_text())['config']['block_size'] == 16

def test_control_characters_in_the_name_of_a_corpus_are_shown_not_obeyed(capsys):
    name = 'te\x1b[31mx\nt.txt'
    Path(name).write_text(TEXT)
    code, out, _ = run(capsys, 'train', '--corpus', name, '--steps', 2, *TINY)
    assert code == 0 and '\x1b' not in out and out.splitlines()[0].startswith('te␛[31mx t.txt: ')
    assert '\x1b' not in fails(capsys, 'train', '--corpus', name + '\n')

def test_control_characters_are_shown_not_obeyed(capsys):
    tokenizer = CharTokenizer('\x1b\x07\x9b')
    LanguageModel(LMConfig(vocab_size=3, n_layer=1, n_embd=16), tokenizer).save_safetensors('m.safetensors')
    code, out, _ = run(capsys, 'generate', '--checkpoint', 'm.safetensors', '--prompt', '\x1b',
                       '--max-tokens', 50)
    assert code == 0 and len(out) == 52 and not set(out) & {'\x1b', '\x07', '\x9b'}

def test_every_control_character_is_shown_and_nothing_else_is_changed(capsys):
    every = ''.join(map(chr, range(1, 0xa2)))
    LanguageModel(LMConfig(vocab_size=len(every), n_layer=1, n_embd=16),
                  CharTokenizer(every)).save_safetensors('m.safetensors')
    _, out, _ = run(capsys, 'generate', '--checkpoint', 'm.safetensors', '--prompt', every, '--max-tokens', 1)
    for char, seen in zip(every, out):
        control = unicodedata.category(char) == 'Cc' and char not in '\n\t'
        assert seen.isprintable() and seen != char if control else seen == char

def test_a_process_without_any_output_does_its_work(monkeypatch):
    "As started by a window system, which gives none."
    for name in ('stdout', 'stderr'): monkeypatch.setattr(sys, name, None)
    assert main(['train', '--corpus', 'text.txt', '--steps', '2', *TINY]) == 0
    assert Path('model.safetensors').exists() and main(['generate', '--checkpoint', 'none']) == 2

@pytest.mark.parametrize('missing', ['--checkpoint', '--prompt'])
def test_what_generate_cannot_do_without_is_asked_for_by_name(capsys, missing):
    given = {'--checkpoint': 'm.safetensors', '--prompt': 'the'}
    del given[missing]
    assert f'required: {missing}' in fails(capsys, 'generate', *next(iter(given.items())))

def test_a_model_that_this_machine_cannot_hold_is_refused_with_both_sizes(capsys, monkeypatch):
    "Weights, gradients and one memory of the optimizer, each of four bytes."
    shape = dict(n_layer=200, n_head=4, n_embd=1024, block_size=64)
    need = 12*LMConfig(vocab_size=len(set(TEXT)), **shape).n_params
    words = [w for name, n in shape.items() for w in ('--' + name.replace('_', '-'), n)]
    pages = {'SC_PHYS_PAGES': need//4096 - 1, 'SC_PAGE_SIZE': 4096}
    monkeypatch.setattr(os, 'sysconf', pages.get)
    said = fails(capsys, 'train', '--corpus', 'text.txt', *words)
    assert f'takes {need/1e9:,.0f} GB, and this machine has {need/1e9:,.0f} GB' in said

# --- a run that is killed, and one that is interrupted

@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits():
    words = ['train', '--corpus', 'text.txt', *TINY, *'--steps 400 --dropout .1 --eval-every 50'.split()]
    whole, broken = (process(*words, '--out', f'{name}.safetensors') for name in ('whole', 'broken'))
    wait_for(Path('broken.safetensors'), broken)
    broken.kill(); broken.wait()
    assert whole.wait(240) == 0
    state = Path('broken.training.safetensors').read_bytes()
    assert b'"step": 400' not in state                                # it really was cut off
    resumed = process(*words, '--out', 'broken.safetensors', '--resume')
    assert resumed.wait(240) == 0
    assert Path('broken.safetensors').read_bytes() == Path('whole.safetensors').read_bytes()

def test_ctrl_c_ends_with_one_line_and_keeps_the_checkpoint():
    proc = process('train', '--corpus', 'text.txt', '--steps', '100000', *TINY, '--out', 'm.safetensors')
    wait_for(Path('m.safetensors'), proc)
    proc.send_signal(signal.SIGINT)
    _, err = proc.communicate(timeout=60)
    assert proc.returncode == 130 and 'Traceback' not in err, err
    assert err.splitlines()[-1].startswith('tinylm: stopped') and '--resume' in err.splitlines()[-1]
    LanguageModel.from_safetensors('m.safetensors')
    assert not [p for p in Path().iterdir() if p.name.startswith('.')]

@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error():
    LanguageModel(LMConfig(vocab_size=2, n_layer=1, n_embd=16),
                  CharTokenizer('ab')).save_safetensors('m.safetensors')
    proc = process('generate', '--checkpoint', 'm.safetensors', '--prompt', 'a', '--max-tokens', '3000')
    proc.stdout.read(5); proc.stdout.close()
    assert proc.wait(120) == 0 and proc.stderr.read() == ''

@pytest.mark.slow
def test_training_does_not_pass_for_done_when_its_reader_leaves():
    proc = process('train', '--corpus', 'text.txt', '--steps', '50', *TINY, '--out', 'm.safetensors')
    proc.stdout.close()
    assert proc.wait(120) != 0 and 'nobody reads' in proc.stderr.read()

@pytest.mark.slow
def test_a_polite_kill_is_like_ctrl_c():
    proc = process('train', '--corpus', 'text.txt', '--steps', '100000', *TINY, '--out', 'm.safetensors')
    wait_for(Path('m.safetensors'), proc)
    proc.terminate()
    _, err = proc.communicate(timeout=60)
    assert proc.returncode == 130 and err.splitlines()[-1].startswith('tinylm: stopped; '
        'm.training.safetensors holds the run')
    assert not [p for p in Path().iterdir() if p.name.startswith('.')]

@pytest.mark.parametrize('sign', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_a_signal_that_a_library_turns_into_an_error_still_stops(capsys, monkeypatch, sign):
    "PyTorch does so in some of its calls."
    def turned(*_):
        try: signal.raise_signal(sign); time.sleep(10)
        except KeyboardInterrupt: raise RuntimeError('could not determine the shape of a storage') from None
    monkeypatch.setattr('tinylm.cli.load_corpus', turned)
    before = signal.signal(sign, signal.default_int_handler)          # a shell may hand it down as ignored
    try: assert run(capsys, 'train') == (130, '', 'tinylm: stopped\n')
    finally: signal.signal(sign, before)

@pytest.mark.slow
def test_a_terminal_without_the_characters_gets_others():
    LanguageModel(LMConfig(vocab_size=2, n_layer=1, n_embd=16),
                  CharTokenizer('aé')).save_safetensors('m.safetensors')
    words = 'generate --checkpoint m.safetensors --prompt a --max-tokens 30'.split()
    proc = run_python('-m', 'tinylm', *words, text=False, env=ENV | {'PYTHONIOENCODING': 'ascii'})
    assert proc.returncode == 0 and len(proc.stdout) == 32 and b'?' in proc.stdout

# --- ways to start

@pytest.mark.slow
@pytest.mark.parametrize('module', ['tinylm', 'tinylm.cli'])
def test_python_m_is_the_command(module):
    pipes = dict(text=True, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    version, wrong = (start_python('-m', module, word, **pipes) for word in ('--version', 'dance'))
    out, err = version.communicate()
    assert version.returncode == 0 and out.startswith('tinylm ') and err == ''
    out, err = wrong.communicate()
    assert wrong.returncode == 2 and out == ''
    assert re.fullmatch("tinylm: .*invalid choice: 'dance'.*\n", err)

@pytest.mark.slow
def test_importing_the_modules_of_the_command_starts_nothing():
    done = run_python('-c', 'import tinylm.__main__, tinylm.cli', 'dance', env=ENV)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')

def test_main_works_in_a_thread_and_leaves_the_process_as_it_was(capsys):
    before, codes = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: codes.append(main(['train', '--n-embd', '30'])))
    thread.start(); thread.join()
    capsys.readouterr()
    fails(capsys, 'train', '--n-embd', 30)
    assert codes == [2] and signal.getsignal(signal.SIGTERM) is before

# --- bad input

@pytest.mark.parametrize('words, says', [
    ('', 'required'), ('dance', 'invalid choice'), ('train --steps many', "invalid int value: 'many'"),
    ('generate --prompt a', '--checkpoint'), ('train --corpus missing.txt', "no corpus 'missing.txt'"),
    ('train --corpus .', 'is a folder'), ('train --steps 0', 'steps is 0'),
    ('train --n-embd 30', '30 is not divisible'),
    ('train --dropout 2', 'dropout is 2'), ('train --resume', 'nothing to resume'),
    ('generate --checkpoint none.safetensors --prompt a', 'no file none.safetensors'),
    ('train --corpus text.txt --block-size 5000', 'too short'), ('train --corpus text.txt --lr -1', 'lr'),
    ('train --n-embd 10000000000000000000', 'n_embd is 10000000000000000000: expected a whole number from 1 '
                                            'to 2147483647'),
    ('train --n-layer 2147483647', 'n_layer 2147483647 and n_embd 128 make 425,'),
    ('train --corpus text.txt --out text.txt --overwrite', 'not a whole safetensors file'),
    ('train --corpus text.txt --seed 18446744073709551616', 'seed is 18446744073709551616'),
    ('generate --checkpoint a --prompt b --seed -1', 'seed is -1: expected a whole number from 0 to '
                                                     '9223372036854775807'),
    ('generate --checkpoint a --prompt b --top-p 1.5', 'top_p is 1.5'),
    ('generate --checkpoint a --prompt b --temperature nan', 'temperature is nan'),
    ('bench --compiled', 'unrecognized arguments: --compiled'),
    ('train --device gpu', "device is 'gpu': this machine has cpu"),
    ('train --device meta', "device is 'meta'"), ('train --n-kv-head 2', 'unrecognized arguments')])
def test_one_line_for_bad_words(capsys, words, says):
    line = fails(capsys, *words.split())
    assert says in line and len(line) < 300
    assert sorted(p.name for p in Path().iterdir()) == ['text.txt']

def test_one_line_for_bad_files(capsys):
    Path('empty.txt').write_text(''); Path('short.txt').write_text('abc')
    Path('latin.txt').write_bytes('é'.encode('latin-1')*500)
    for name, says in {'empty.txt': 'empty', 'latin.txt': 'not UTF-8', 'short.txt': 'too short'}.items():
        assert says in fails(capsys, 'train', '--corpus', name)
    assert [p.name for p in Path().glob('*.safetensors')] == []
    torch.save({'a': torch.ones(1)}, 'pickle.safetensors')
    assert 'not a whole safetensors file' in fails(capsys, 'generate', '--checkpoint', 'pickle.safetensors',
                                                   '--prompt', 'a')

def test_one_line_for_bad_prompts_and_dials(capsys):
    LanguageModel(LMConfig(vocab_size=3, n_layer=1, n_embd=16),
                  CharTokenizer('abc')).save_safetensors('m.safetensors')
    LanguageModel(LMConfig(vocab_size=3, n_layer=1, n_embd=16)).save_safetensors('plain.safetensors')
    generate = ['generate', '--checkpoint', 'm.safetensors', '--prompt']
    assert "'x' at position 2" in fails(capsys, *generate, 'abx')
    assert 'prompt is empty' in fails(capsys, *generate, '')
    assert 'max_new_tokens is -1' in fails(capsys, *generate, 'a', '--max-tokens', -1)
    assert 'temperature is -1' in fails(capsys, *generate, 'a', '--temperature', -1)
    assert 'no vocabulary' in fails(capsys, 'generate', '--checkpoint', 'plain.safetensors', '--prompt', 'a')
    assert "device is 'gpu'" in fails(capsys, *generate, 'a', '--device', 'gpu')
    assert run(capsys, *generate, 'a', '--device', 'cpu', '--max-tokens', 2)[0] == 0

def test_an_unwritable_folder_is_said_at_once(capsys):
    Path('file').write_text('')
    assert 'file' in fails(capsys, 'train', '--corpus', 'text.txt', '--steps', 100000, *TINY, '--out',
                           'file/m.safetensors')

# --- resume

RUN = ['train', '--corpus', 'text.txt', '--out', 'm.safetensors']
OTHER = dict(block_size=8, n_layer=2, n_head=1, n_embd=32, dropout=.1, steps=6, batch_size=5, lr=.01,
             min_lr=1e-5, warmup=3,
             weight_decay=.2, beta1=.8, beta2=.99, grad_clip=2., seed=3)

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A folder with a run that was stopped after ten of twelve steps, and with an unbroken one."
    folder = tmp_path_factory.mktemp('runs')
    words = ['train', '--corpus', 'text.txt', *TINY, *'--steps 12 --lr .004 --dropout .2 --seed 7'.split()]
    save = LanguageModel.save_safetensors
    def stop(self, path, *how): save(self, path, *how); raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        Path('text.txt').write_text(TEXT)
        assert main([*words, '--out', 'whole.safetensors']) == 0
        m.setattr(LanguageModel, 'save_safetensors', stop)
        assert main([*words, '--out', 'm.safetensors']) == 130
    assert read_run(folder/'m.training.safetensors').progress['step'] == 10
    return folder

@pytest.fixture
def stopped(runs):
    "The files of the run that was stopped, and the bytes of an unbroken one."
    for file in runs.iterdir(): shutil.copy(file, '.')
    return Path('whole.safetensors').read_bytes()

@pytest.mark.parametrize('words',
                         [[], ['--lr', .004, '--n-embd', 16], ['--eval-every', 1, '--eval-windows', 2]])
def test_resume_takes_shape_and_recipe_from_the_run(capsys, stopped, words):
    code, out, err = run(capsys, *RUN, '--resume', *words)
    assert code == 0, err
    assert Path('m.safetensors').read_bytes() == stopped and 'a model of 3,808 parameters' in out
    if '--eval-every' in words:
        kept = read_run('m.training.safetensors')
        assert (kept.recipe.eval_every, kept.recipe.eval_windows) == (1, 2)
        assert [h['step'] for h in kept.progress['history']] == [0, 10, 11, 12]

@pytest.mark.parametrize('name', OTHER)
def test_a_flag_that_was_given_must_agree_with_the_run(capsys, stopped, name):
    before = {p.name: p.read_bytes() for p in Path().iterdir()}
    saved = read_run('m.training.safetensors')
    theirs = getattr(saved.model if name in ('block_size', 'n_layer', 'n_head', 'n_embd', 'dropout')
                     else saved.recipe, name)
    flag = '--' + name.replace('_', '-')
    says = (f'tinylm: {flag} {OTHER[name]} was given, and the run in m.training.safetensors has {name} '
            f'{theirs}')
    assert fails(capsys, *RUN, '--resume', flag, OTHER[name]) == says
    assert {p.name: p.read_bytes() for p in Path().iterdir()} == before

def test_a_flag_that_repeats_the_default_was_given_all_the_same(capsys, stopped):
    says = f'--lr {TrainConfig.lr} was given, and the run in m.training.safetensors has lr 0.004'
    assert says in fails(capsys, *RUN, '--resume', '--lr', TrainConfig.lr)

def test_resume_with_another_text_is_refused(capsys, stopped):
    before = Path('m.training.safetensors').read_bytes()
    Path('text.txt').write_text(TEXT[:-60])
    assert 'another text' in fails(capsys, *RUN, '--resume')
    Path('text.txt').write_text(TEXT + '€')
    assert (f"--corpus text.txt is not the text of the run in m.training.safetensors: character '€' at "
            f"position "
            f"{len(TEXT)} is not") in fails(capsys, *RUN, '--resume')
    assert Path('m.training.safetensors').read_bytes() == before

def test_resume_of_what_is_no_run_is_refused(capsys):
    LanguageModel(LMConfig(vocab_size=3, n_layer=1, n_embd=16)).save_safetensors('m.training.safetensors')
    assert 'm.training.safetensors is not a training checkpoint' in fails(capsys, *RUN, '--resume')

@pytest.mark.parametrize('words',
    ['--help', 'train --help', 'generate --help', 'demo --help', 'bench --help', '--version'])
def test_help_explains_every_flag(capsys, words):
    with pytest.raises(SystemExit) as e: main(words.split())
    assert e.value.code == 0 and 'tinylm' in capsys.readouterr().out

def test_help_shows_the_defaults_of_the_dataclasses(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    with pytest.raises(SystemExit): main(['train', '--help'])
    out = capsys.readouterr().out
    for flag, value in dict(lr=TrainConfig.lr, seed=TrainConfig.seed, n_embd=LMConfig.n_embd,
                            device='cpu').items():
        assert re.search(rf"--{flag.replace('_', '-')} \w+ .*\({value}\)\n", out), flag

def test_the_flags_of_the_shape_are_those_of_the_course(capsys):
    "What only a later lesson needs is no flag, and is as in `LMConfig`."
    assert run(capsys, *RUN, '--steps', 2, *TINY)[0] == 0
    about = json.loads(read_safetensors('m.safetensors')[1]['tinylm'])['config']
    own = dict(vocab_size=len(set(TEXT)), block_size=16, n_layer=1, n_head=2, n_embd=16)
    assert LMConfig(**about) == LMConfig(**own)

# --- chat, and models from elsewhere

def letters(text): return ''.join(c for c in text if c.isalnum()) # the terminal is spared all that steers it

@pytest.fixture(scope='module')
def talker(tmp_path_factory):
    "A model with a chat template in three formats, and itself."
    names = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
    tokenizer = train_subwords('the cat sat on the mat. '*50, 300, names, chat_template=CHATML, end=[0, 2])
    torch.manual_seed(3)
    modern = dict(norm='rms', mlp='swiglu', positions='rotary', bias=False)
    model = LanguageModel(LMConfig(tokenizer.vocab_size, 128, 2, 4, 32, **modern), tokenizer).eval()
    for w in model.parameters(): torch.nn.init.normal_(w, std=.3)
    folder = tmp_path_factory.mktemp('talker')
    model.save_safetensors(folder/'own.safetensors')
    to_hf(model, folder/'hf'); to_gguf(model, folder/'m.gguf')
    return model, folder

@pytest.mark.parametrize('name', ['own.safetensors', 'hf', 'm.gguf'])
def test_generate_takes_every_format(talker, name, capsys):
    model, folder = talker
    words = '--prompt cat --max-tokens 12 --temperature 0'.split()
    assert main(['generate', '--checkpoint', str(folder/name), *words]) == 0
    ids = torch.tensor([model.tokenizer.encode('cat')])
    want = model.tokenizer.decode(model.decode(ids, 12, temperature=0)[0])
    assert letters(capsys.readouterr().out) == letters(want)

@pytest.mark.parametrize('name', ['hf', 'm.gguf'])
def test_chat_answers_each_line_as_a_conversation_does(talker, name, capsys, monkeypatch):
    model, folder = talker
    monkeypatch.setattr('sys.stdin', io.StringIO('the cat\n\non the mat\n/quit\nnot read\n'))
    assert main(['chat', '--checkpoint', str(folder/name), '--max-tokens', '9']) == 0
    talk = chat(model, max_new_tokens=9)
    want = [''.join(talk.say(line)) for line in ('the cat', 'on the mat')]
    assert letters(capsys.readouterr().out) == letters(''.join(want))

@pytest.fixture(scope='module')
def endless(tmp_path_factory):
    "A model that says la, la, la until somebody stops it."
    names = ['la ', '<|im_start|>', '<|im_end|>']
    tokenizer = train_subwords('the cat sat on the mat. '*50, 300, names, chat_template=CHATML, end=[])
    modern = dict(norm='rms', mlp='swiglu', positions='rotary', bias=False, tie_embeddings=False)
    model = LanguageModel(LMConfig(tokenizer.vocab_size, 1 << 15, 1, 1, 8, **modern), tokenizer).eval()
    for p in model.parameters(): torch.nn.init.zeros_(p)
    for p in (model.tok_emb.weight, model.norm.weight, model.head.weight[0]): torch.nn.init.ones_(p)
    model.save_safetensors(path := tmp_path_factory.mktemp('endless')/'m.safetensors')
    return 'chat', '--checkpoint', path, '--max-tokens', '30000'

AT_A_TERMINAL = """import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from tinylm.cli import main
sys.exit(main())"""

class Terminal:
    "A command at a terminal of its own, where Ctrl-C is a key."
    def __init__(self, *words):
        self.screen, theirs = pty.openpty()
        how = dict.fromkeys(('stdin', 'stdout', 'stderr'), theirs)
        self.process = start_python('-c', AT_A_TERMINAL, *words, env=ENV, start_new_session=True, **how)
        os.close(theirs)

    def type(self, text): os.write(self.screen, text.encode())

    def until(self, pattern, seconds=60):
        "What the screen shows until something stands there; without a pattern until the end."
        seen, end = '', time.time() + seconds
        while pattern is None or not re.search(pattern, seen):
            assert select.select([self.screen], [], [], max(0, end - time.time()))[0], seen
            try: new = os.read(self.screen, 1000).decode()
            except OSError: new = ''                   # they have left
            if not new: break
            seen += new
        assert pattern is None or re.search(pattern, seen), seen
        return seen

    def ended(self):
        rest = self.until(None)
        os.close(self.screen)
        return self.process.wait(60), rest

def test_ctrl_c_cuts_an_answer_and_at_the_prompt_ends_the_chat(endless):
    t, saved = Terminal(*endless), []
    t.until('> ')
    for message in ('the cat', 'on the mat'):
        t.type(message + '\n'); t.until('(la ){5}')
        t.type('\x03')
        rest = t.until(r'saved.*\n> ')
        assert rest.count('la ') < 29_000 and 'stopped' not in rest
        saved.append(int(re.search(r'(\d+) saved', rest)[1]))
    assert saved[0] == 0 and saved[1] > 10
    time.sleep(.3)                                     # a prompt stands there before Python waits for a key
    t.type('\x03')
    code, rest = t.ended()
    assert code == 130 and rest.splitlines()[-1] == 'tinylm: stopped' and 'Traceback' not in rest

@pytest.mark.slow
def test_an_interrupt_cuts_an_answer_to_a_pipe_and_the_next_line_is_read(endless):
    proc = start_python('-m', 'tinylm', *endless, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE)
    for message in (b'the cat\n', b'on the mat\n'):
        proc.stdin.write(message); proc.stdin.flush()
        assert proc.stdout.read(15) == b'la '*5
        proc.send_signal(signal.SIGINT)
        assert proc.stdout.readline().count(b'la ') < 29_000
    proc.send_signal(signal.SIGINT)
    assert proc.communicate(timeout=60) == (b'', b'tinylm: stopped\n') and proc.returncode == 130

@pytest.mark.slow
@pytest.mark.parametrize('sign', [signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_a_polite_kill_ends_a_chat_in_the_middle_of_an_answer(endless, sign):
    proc = start_python('-m', 'tinylm', *endless, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE)
    proc.stdin.write(b'the cat\n'); proc.stdin.flush(); proc.stdout.read(15)
    proc.send_signal(sign)
    assert proc.communicate(timeout=60)[1] == b'tinylm: stopped\n' and proc.returncode == 130

@pytest.mark.parametrize('turned', [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_that_a_library_turns_into_an_error_cuts_an_answer_too(endless, capsys, monkeypatch,
                                                                            turned):
    asked = []
    def say(self, message):
        asked.append(message)
        yield 'la '
        try: signal.raise_signal(signal.SIGINT); time.sleep(10)
        except KeyboardInterrupt: raise turned from None
    monkeypatch.setattr('tinylm.conversation.Conversation.say', say)
    monkeypatch.setattr('sys.stdin', io.StringIO('the cat\non the mat\n'))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try: assert run(capsys, *endless) == (0, 'la \nla \n', '')
    finally: signal.signal(signal.SIGINT, before)
    assert asked == ['the cat', 'on the mat']

def test_an_error_of_a_library_is_no_interrupt(endless, capsys, monkeypatch):
    def say(self, message): raise RuntimeError('it broke')
    monkeypatch.setattr('tinylm.conversation.Conversation.say', say)
    monkeypatch.setattr('sys.stdin', io.StringIO('the cat\non the mat\n'))
    assert run(capsys, *endless) == (2, '', 'tinylm: it broke\n')

@pytest.mark.parametrize('line, says', [
    (b'\xff\xfe', 'half a character'), (b'the\x80cat', 'half a character'),
    (b'cat '*40_000, 'expected fewer than block_size 32768')])
def test_a_message_that_makes_no_sense_is_one_line_and_the_chat_goes_on(endless, capsys, monkeypatch, line,
                                                                        says):
    lines = io.TextIOWrapper(io.BytesIO(b'the cat\n' + line + b'\nthe mat\n'), 'utf-8')
    monkeypatch.setattr('sys.stdin', lines)
    code, out, err = run(capsys, *endless[:-1], 3)
    assert (code, out) == (0, 'la la la \n'*2) and says in err and err.count('\n') == 1

@pytest.mark.parametrize('words, says', [
    (['--max-tokens', 0], 'max_new_tokens is 0'), (['--max-tokens', 'x'], "invalid int value: 'x'"),
    (['--temperature', 'nan'], 'temperature is nan'), (['--top-p', 2], 'top_p is 2.0'),
    (['--seed', -1], 'seed is -1'), (['--device', 'gpu'], "device is 'gpu'"),
    (['--system', '\udcff'], 'half a character'),
    (['--checkpoint', 'none.gguf'], 'there is no file none.gguf'),
    (['--checkpoint', 'text.txt'], 'text.txt is not a whole safetensors file')])
def test_one_line_for_a_chat_that_makes_no_sense(endless, capsys, monkeypatch, words, says):
    monkeypatch.setattr('sys.stdin', io.StringIO('the cat\n'))
    assert says in fails(capsys, *endless, *words)

def test_a_chat_without_anybody_to_talk_to_is_refused(endless, capsys, monkeypatch):
    monkeypatch.setattr('sys.stdin', None)
    assert 'standard input is closed' in fails(capsys, *endless)

def test_chat_needs_a_template_and_says_so(tmp_path, capsys):
    model = LanguageModel(LMConfig(3, 8, 1, 1, 8), CharTokenizer('abc'))
    model.save_safetensors(tmp_path/'m.safetensors')
    assert main(['chat', '--checkpoint', str(tmp_path/'m.safetensors')]) == 2
    said = capsys.readouterr().err
    assert 'chat template' in said and said.count('\n') == 1

def test_the_doctor_looks_at_a_model(talker, capsys):
    assert main(['doctor', '--checkpoint', str(talker[1]/'m.gguf')]) == 0
    assert 'ok  this model' in capsys.readouterr().out
