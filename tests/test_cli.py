"The command line as a person meets it: `main` in this process for speed, real processes where signals matter."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch

from tinylm import LanguageModel, LMConfig, CharTokenizer
from tinylm.cli import main

TINY = '--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 4 --eval-every 10 --eval-windows 4'.split()
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

def process(*words):
    return subprocess.Popen([sys.executable, '-c', 'import sys; from tinylm.cli import main; sys.exit(main())', *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'})

def wait_for(path, proc, seconds=120):
    end = time.time() + seconds
    while not path.exists():
        assert proc.poll() is None and time.time() < end, proc.stderr.read()
        time.sleep(.01)

def test_train_then_generate(capsys):
    code, out, _ = run(capsys, 'train', '--corpus', 'text.txt', '--steps', 20, *TINY)
    assert code == 0 and 'validation loss' in out and Path('model.safetensors').exists()
    code, out, _ = run(capsys, 'generate', '--checkpoint', 'model.safetensors', '--prompt', 'the ', '--max-tokens', 30, '--seed', 1)
    assert code == 0 and out.startswith('the ') and len(out) == 4 + 30 + 1
    again = run(capsys, 'generate', '--checkpoint', 'model.safetensors', '--prompt', 'the ', '--max-tokens', 30, '--seed', 1)[1]
    other = run(capsys, 'generate', '--checkpoint', 'model.safetensors', '--prompt', 'the ', '--max-tokens', 30, '--seed', 2)[1]
    assert again == out != other

def test_generate_is_decode(capsys):
    torch.manual_seed(0)
    model = LanguageModel(LMConfig(vocab_size=27, n_layer=1, n_embd=16), CharTokenizer('abcdefghijklmnopqrstuvwxyz '))
    model.save_safetensors('m.safetensors')
    want = model.decode(torch.tensor([model.tokenizer.encode('hello')]), 20, temperature=.5, top_k=9, top_p=.8, generator=torch.Generator().manual_seed(4))
    _, out, _ = run(capsys, 'generate', '--checkpoint', 'm.safetensors', '--prompt', 'hello', '--max-tokens', 20, '--temperature', .5, '--top-k', 9, '--top-p', .8, '--seed', 4)
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

def test_demo_does_the_whole_job(capsys):
    code, out, _ = run(capsys, 'demo', '--steps', 2)
    assert code == 0 and Path('demo.safetensors').exists() and 'It writes:' in out
    assert [line.split()[0] for line in out.splitlines() if line.startswith(('prefill', 'decode'))] == ['prefill', 'decode']

def test_bench_writes_what_it_measured(capsys):
    LanguageModel(LMConfig(vocab_size=3, block_size=16, n_layer=1, n_embd=16)).save_safetensors('m.safetensors')
    code, out, _ = run(capsys, 'bench', '--checkpoint', 'm.safetensors', '--prompt', 4, '--json', 'b.json')
    assert code == 0 and 'cached' in out and json.loads(Path('b.json').read_text())['config']['block_size'] == 16

def test_control_characters_are_shown_not_obeyed(capsys):
    tokenizer = CharTokenizer('\x1b\x07\x9b')
    LanguageModel(LMConfig(vocab_size=3, n_layer=1, n_embd=16), tokenizer).save_safetensors('m.safetensors')
    code, out, _ = run(capsys, 'generate', '--checkpoint', 'm.safetensors', '--prompt', '\x1b', '--max-tokens', 50)
    assert code == 0 and len(out) == 52 and not set(out) & {'\x1b', '\x07', '\x9b'}

# --- a run that is killed, and one that is interrupted

def test_a_killed_run_resumes_to_the_same_bits():
    words = ['train', '--corpus', 'text.txt', '--steps', '400', *TINY, '--dropout', '.1']
    whole = process(*words, '--out', 'whole.safetensors')
    assert whole.wait(240) == 0
    broken = process(*words, '--out', 'broken.safetensors')
    wait_for(Path('broken.safetensors'), broken)
    broken.kill(); broken.wait()
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

def test_a_reader_that_leaves_is_no_error():
    LanguageModel(LMConfig(vocab_size=2, n_layer=1, n_embd=16), CharTokenizer('ab')).save_safetensors('m.safetensors')
    proc = process('generate', '--checkpoint', 'm.safetensors', '--prompt', 'a', '--max-tokens', '3000')
    proc.stdout.read(5); proc.stdout.close()
    assert proc.wait(120) == 0 and proc.stderr.read() == ''

def test_training_does_not_pass_for_done_when_its_reader_leaves():
    proc = process('train', '--corpus', 'text.txt', '--steps', '50', *TINY, '--out', 'm.safetensors')
    proc.stdout.close()
    assert proc.wait(120) != 0 and 'nobody reads' in proc.stderr.read()

def test_a_polite_kill_is_like_ctrl_c():
    proc = process('train', '--corpus', 'text.txt', '--steps', '100000', *TINY, '--out', 'm.safetensors')
    wait_for(Path('m.safetensors'), proc)
    proc.terminate()
    _, err = proc.communicate(timeout=60)
    assert proc.returncode == 130 and err.splitlines()[-1].startswith('tinylm: stopped; m.training.safetensors holds the run')
    assert not [p for p in Path().iterdir() if p.name.startswith('.')]

def test_a_terminal_without_the_characters_gets_others():
    LanguageModel(LMConfig(vocab_size=2, n_layer=1, n_embd=16), CharTokenizer('aé')).save_safetensors('m.safetensors')
    proc = subprocess.run([sys.executable, '-c', 'import sys; from tinylm.cli import main; sys.exit(main())', *'generate --checkpoint m.safetensors --prompt a --max-tokens 30'.split()],
                          capture_output=True, env={**os.environ, 'PYTHONIOENCODING': 'ascii', 'OMP_NUM_THREADS': '1'})
    assert proc.returncode == 0 and len(proc.stdout) == 32 and b'?' in proc.stdout

# --- bad input

@pytest.mark.parametrize('words, says', [
    ('', 'required'), ('dance', 'invalid choice'), ('train --steps many', "invalid int value: 'many'"), ('generate --prompt a', '--checkpoint'),
    ('train --corpus missing.txt', "no corpus 'missing.txt'"), ('train --corpus .', 'is a folder'), ('train --steps 0', 'steps is 0'), ('train --n-embd 30', '30 is not divisible'),
    ('train --dropout 2', 'dropout is 2'), ('train --resume', 'nothing to resume'), ('generate --checkpoint none.safetensors --prompt a', 'no file none.safetensors'),
    ('train --corpus text.txt --block-size 5000', 'too short'), ('train --corpus text.txt --lr -1', 'lr'), ('train --corpus text.txt --n-embd 10000000000000000000', 'less than 2**31'),
    ('train --corpus text.txt --out text.txt --overwrite', 'not a whole safetensors file'), ('train --corpus text.txt --seed 18446744073709551616', 'seed is 18446744073709551616'),
    ('generate --checkpoint a --prompt b --seed -1', "invalid _seed value: '-1'")])
def test_one_line_for_bad_words(capsys, words, says): assert says in fails(capsys, *words.split())

def test_one_line_for_bad_files(capsys):
    Path('empty.txt').write_text(''); Path('latin.txt').write_bytes('é'.encode('latin-1')*500); Path('short.txt').write_text('abc')
    for name, says in {'empty.txt': 'empty', 'latin.txt': 'not UTF-8', 'short.txt': 'too short'}.items():
        assert says in fails(capsys, 'train', '--corpus', name)
    assert [p.name for p in Path().glob('*.safetensors')] == []
    torch.save({'a': torch.ones(1)}, 'pickle.safetensors')
    assert 'not a whole safetensors file' in fails(capsys, 'generate', '--checkpoint', 'pickle.safetensors', '--prompt', 'a')

def test_one_line_for_bad_prompts_and_dials(capsys):
    LanguageModel(LMConfig(vocab_size=3, n_layer=1, n_embd=16), CharTokenizer('abc')).save_safetensors('m.safetensors')
    LanguageModel(LMConfig(vocab_size=3, n_layer=1, n_embd=16)).save_safetensors('plain.safetensors')
    generate = ['generate', '--checkpoint', 'm.safetensors', '--prompt']
    assert "'x' at position 2" in fails(capsys, *generate, 'abx')
    assert 'prompt is empty' in fails(capsys, *generate, '')
    assert 'max_new_tokens is -1' in fails(capsys, *generate, 'a', '--max-tokens', -1)
    assert 'temperature is -1' in fails(capsys, *generate, 'a', '--temperature', -1)
    assert 'no vocabulary' in fails(capsys, 'generate', '--checkpoint', 'plain.safetensors', '--prompt', 'a')

def test_an_unwritable_folder_is_said_at_once(capsys):
    Path('file').write_text('')
    assert 'file' in fails(capsys, 'train', '--corpus', 'text.txt', '--steps', 100000, *TINY, '--out', 'file/m.safetensors')

def test_resume_with_other_flags_is_refused(capsys):
    train = ['train', '--corpus', 'text.txt', *TINY]
    run(capsys, *train, '--steps', 5)
    assert 'another recipe' in fails(capsys, *train, '--steps', 6, '--resume')
    Path('text.txt').write_text(TEXT[:-60])
    assert 'another text' in fails(capsys, *train, '--steps', 5, '--resume')

@pytest.mark.parametrize('words', ['--help', 'train --help', 'generate --help', 'demo --help', 'bench --help', '--version'])
def test_help_explains_every_flag(capsys, words):
    with pytest.raises(SystemExit) as e: main(words.split())
    assert e.value.code == 0 and 'tinylm' in capsys.readouterr().out
