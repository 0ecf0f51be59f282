"Refusals in one short line, numbers that are numbers, and files that are whole or absent."
import errno, os, re, stat, subprocess, threading
from contextlib import redirect_stdout
from io import StringIO
from math import inf, nan
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from helpers import Boom, run_python, quick, start_python

from tinylm import CharTokenizer, LanguageModel, LMConfig, write_atomic
from tinylm.core import (Changes, check_count, check_number, check_one_of, check_writable, data_dir, judge,
                         owning, shown, write_folder)

class Shows:
    "A value with any repr at all."
    def __init__(self, text): self.text = text
    def __repr__(self): return self.text

NESTED = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
                      lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
ANYTHING = NESTED | st.text().map(Shows)

# --- a value as an error shows it

@quick
@given(ANYTHING, st.integers(1, 80))
def test_any_value_is_shown_on_one_short_line(value, most):
    text = shown(value, most)
    assert len(text) <= most and len(text.splitlines()) <= 1
    if len(repr(value)) <= most and len(repr(value).splitlines()) == 1 and repr(value) == repr(value).strip():
        assert text.split() == repr(value).split()                        # nothing is lost without need

@given(st.integers(3, 80))
def test_what_just_fits_is_shown_whole(most):
    assert shown('x'*(most-2), most) == repr('x'*(most-2))
    assert shown('x'*(most-1), most) == repr('x'*(most-1))[:most-1] + '…'

@pytest.mark.parametrize('value', [torch.zeros(99, 99), np.zeros((99, 99)), list(range(9999)), LMConfig(),
                                   LanguageModel(LMConfig(n_layer=1, n_embd=8)), 'two\nlines', 'x'*999])
def test_large_values_are_cut_and_their_beginning_is_kept(value):
    text = shown(value)
    assert len(text.splitlines()) == 1 and len(text) <= 60 and text[:5] == repr(value)[:5]
    assert text.endswith('…') == (len(' '.join(repr(value).split())) > 60)

# --- whole numbers

KINDS = [int, np.int8, np.int32, np.int64, np.uint16, torch.tensor]

@quick
@given(st.integers(0, 100), st.sampled_from(KINDS), st.integers(-100, 100), st.none()
       | st.integers(-100, 200))
def test_a_count_is_any_kind_of_integer_within_its_limits(n, kind, least, most):
    if least <= n and (most is None or n <= most):
        got = check_count('n', kind(n), least, most)
        assert got == n and type(got) is int
    else:
        span = f'of at least {least}' if most is None else f'from {least} to {most}'
        says = f'n is {re.escape(shown(kind(n)))}: expected a whole number {span}$'
        with pytest.raises(ValueError, match=says): check_count('n', kind(n), least, most)

NO_COUNT = (st.booleans() | st.floats() | st.text() | st.none() | st.lists(st.integers(1, 9))
            | st.text().map(Shows)
            | st.sampled_from([np.float64(3), np.True_, torch.tensor(True), np.zeros(3, int), torch.ones(2),
                               torch.tensor(3.), 2j]))

@quick
@given(NO_COUNT)
def test_what_is_no_whole_number_is_no_count(bad):
    with pytest.raises(ValueError) as e: check_count('n_layer', bad)
    assert str(e.value) == f'n_layer is {shown(bad)}: expected a whole number of at least 1'

# --- numbers

@quick
@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(-10, 10), st.booleans(), st.booleans(),
       st.sampled_from([float, np.float32, np.float64, torch.tensor]))
def test_a_number_is_inside_its_limits_or_refused(x, low, high, above, below, kind):
    x = float(kind(x))
    inside = (low < x if above else low <= x) and (x < high if below else x <= high)
    if inside: assert check_number('x', kind(x), low, high, above, below) == x
    else:
        with pytest.raises(ValueError, match='^x is .*: expected a number') as e:
            check_number('x', kind(x), low, high, above, below)
        assert ('above' if above else 'of at least') in str(e.value)
        assert ('below' if below else 'at most') in str(e.value)

@pytest.mark.parametrize('bad',
                         [True, False, nan, inf, -inf, 10**400, '1', b'1', None, [1.], 1j, torch.zeros(2),
                                 torch.zeros(1, device='meta'), np.zeros(2), np.float64('nan'),
                                 Shows('a\nb')])
def test_what_is_no_finite_number_is_refused(bad):
    with pytest.raises(ValueError) as e: check_number('lr', bad)
    assert str(e.value) == f'lr is {shown(bad)}: expected a number of at least 0'

@pytest.mark.parametrize('limits, says', [
    ((0, 1, True, True), 'above 0, below 1'), ((0, 1), 'of at least 0, at most 1'), ((-inf, 1), 'at most 1'),
    ((.5, inf, True), 'above 0.5'), ((0, 1, False, True), 'of at least 0, below 1')])
def test_the_limits_are_said(limits, says):
    with pytest.raises(ValueError, match=f'^x is nan: expected a number {re.escape(says)}$'):
        check_number('x', nan, *limits)

@quick
@given(st.floats(-10, 10), st.sampled_from(['low', 'high']), st.booleans(), st.booleans())
def test_a_limit_is_inside_unless_it_is_said_to_be_outside(x, edge, above, below):
    limits = (x, x+1) if edge == 'low' else (x-1, x)
    if above if edge == 'low' else below:
        with pytest.raises(ValueError, match='^x is'): check_number('x', x, *limits, above, below)
    else: assert check_number('x', x, *limits, above, below) == x

# --- names

@quick
@given(NESTED, st.lists(st.text(st.characters(categories=['L']), min_size=1), min_size=1, max_size=5))
def test_a_name_is_one_of_those_there_are(value, names):
    for name in names: assert check_one_of('view', name, names) is None
    if value not in names:
        with pytest.raises(ValueError) as e: check_one_of('view', value, dict.fromkeys(names))
        assert str(e.value) == f'view is {shown(value)}: expected one of {", ".join(dict.fromkeys(names))}'

# --- where files are

def test_the_folder_for_data_is_the_one_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('TINYLM_DATA', str(tmp_path))
    assert data_dir() == tmp_path
    monkeypatch.setenv('TINYLM_DATA', '')
    assert data_dir().name == 'tinylm'

# --- files, whole or not at all

def files(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}

@quick
@given(st.lists(st.binary()))
def test_a_written_file_holds_all_chunks_in_order(tmp_path_factory, chunks):
    path = tmp_path_factory.getbasetemp()/'chunks'
    write_atomic(path, iter(chunks))
    assert path.read_bytes() == b''.join(chunks)

@pytest.mark.parametrize('error', [ValueError, OSError, KeyboardInterrupt, Boom])
@pytest.mark.parametrize('old', [None, b'old'])
def test_an_error_between_chunks_keeps_the_old_content_and_leaves_nothing_else(tmp_path, error, old):
    path = tmp_path/'file'
    if old: path.write_bytes(old)
    def chunks():
        yield b'new'
        raise error
    with pytest.raises(error): write_atomic(path, chunks())
    assert files(tmp_path) == ({'file': old} if old else {})

def test_the_old_content_can_be_read_until_the_last_chunk(tmp_path):
    path = tmp_path/'file'
    path.write_bytes(b'old')
    write_atomic(path, (path.read_bytes() + b'er' for _ in range(2)))
    assert files(tmp_path) == {'file': b'older'*2}

def test_missing_folders_are_made(tmp_path):
    write_atomic(str(tmp_path/'a'/'b'/'file'), [b'new'])
    assert (tmp_path/'a'/'b'/'file').read_bytes() == b'new'

def test_a_link_stays_a_link(tmp_path):
    (tmp_path/'link').symlink_to(tmp_path/'target')
    write_atomic(tmp_path/'link', [b'new'])
    assert (tmp_path/'link').is_symlink() and (tmp_path/'target').read_bytes() == b'new'

def test_a_full_disk_is_said_with_the_name_of_the_file(tmp_path, monkeypatch):
    def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left on device: .*file'):
        write_atomic(tmp_path/'file', [b'new'])

def test_an_error_that_has_words_keeps_them(tmp_path):
    "As that of a download that stands still: it has no number, and the file is not to blame."
    def chunks():
        yield b'new'
        raise TimeoutError('timed out')
    with pytest.raises(TimeoutError, match='^timed out$'): write_atomic(tmp_path/'file', chunks())

# --- every refusal of the library is one short line

@pytest.mark.parametrize('make', [
    lambda bad: LMConfig(n_layer=bad), lambda bad: LMConfig(dropout=bad), lambda bad: LMConfig(attention=bad),
    lambda bad: LMConfig(bias=bad), lambda bad: LMConfig(rope_scaling=bad), lambda bad: LanguageModel(bad),
    lambda bad: LanguageModel(LMConfig(vocab_size=2), bad), lambda bad: CharTokenizer('ab').decode(bad),
    lambda bad: CharTokenizer('ab').decode([bad])])
@pytest.mark.parametrize('bad', [list(range(9999)), Shows('many\nlines\n'*99), {'a': 'x'*999}, 'x'*999])
def test_long_values_make_short_refusals(make, bad):
    with pytest.raises(ValueError) as e: make(bad)
    assert len(str(e.value)) < 300 and len(str(e.value).splitlines()) == 1

# --- files of all kinds

names = st.text(st.characters(blacklist_categories=['Cs'], blacklist_characters='/\0'), min_size=1,
                max_size=80)
legal = names.filter(lambda n: n not in ('.', '..') and len(n.encode()) <= 255)

def only(folder): return [p.name for p in folder.iterdir()]

@quick
@given(legal, st.lists(st.binary(max_size=9), max_size=4),
       st.sampled_from([0o600, 0o640, 0o664, 0o444, 0o755]))
def test_a_file_of_any_legal_name_is_whole_and_keeps_its_mode(tmp_path_factory, name, chunks, mode):
    folder = tmp_path_factory.mktemp('files')
    write_atomic(folder/name, [b'first']); os.chmod(folder/name, mode)
    write_atomic(folder/name, chunks)
    assert (folder/name).read_bytes() == b''.join(chunks)
    assert stat.S_IMODE((folder/name).stat().st_mode) == mode
    assert only(folder) == [name]

def test_the_longest_legal_name_can_be_written(tmp_path):
    name = 'ä'*127 + 'x'
    write_atomic(tmp_path/name, [b'1'])
    assert only(tmp_path) == [name]

def test_links_are_followed_and_stay_links(tmp_path):
    (tmp_path/'real').write_bytes(b'old'); (tmp_path/'link').symlink_to('real')
    write_atomic(tmp_path/'link', [b'new'])
    assert (tmp_path/'link').is_symlink() and (tmp_path/'real').read_bytes() == b'new'

def test_a_pipe_is_written_into_and_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path/'pipe').read_bytes()))
    reader.start(); write_atomic(tmp_path/'pipe', [b'one ', b'two']); reader.join(10)
    assert got == [b'one two'] and stat.S_ISFIFO((tmp_path/'pipe').stat().st_mode)
    assert only(tmp_path) == ['pipe']

@pytest.mark.slow
def test_a_device_and_a_descriptor_are_written_into(tmp_path):
    write_atomic('/dev/null', [b'gone'])
    assert stat.S_ISCHR(os.stat('/dev/null').st_mode)
    code = ("import os; from tinylm.core import write_atomic; print('before'); write_atomic('/dev/stdout', "
            "[b'in\\n']);"
            "print('after', flush=True); write_atomic('/dev/fd/2', [b'err\\n'])")
    with open(tmp_path/'out', 'wb') as out, open(tmp_path/'err', 'wb') as err:
        run_python('-c', code, capture_output=False, stdout=out, stderr=err, check=True)
    assert (tmp_path/'out').read_text() == 'before\nin\nafter\n' and (tmp_path/'err').read_text() == 'err\n'

@pytest.mark.parametrize('folder', ['fd', 'proc/1/fd', '/dev/shm'])
def test_a_file_is_a_file_in_folders_that_look_like_those_of_descriptors(tmp_path, folder):
    path = (tmp_path/folder)/tmp_path.name
    if folder.startswith('/') and not path.parent.is_dir(): pytest.skip(f'there is no {folder}')
    check_writable(path); write_atomic(path, [b'whole'])
    assert path.read_bytes() == b'whole'
    path.unlink()

@pytest.mark.slow
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    code = ("import sys; from tinylm.core import write_atomic\n"
            "def chunks():\n    yield b'half'; print('writing', flush=True); sys.stdin.read(); yield b' "
            "whole'\n"
            f"write_atomic({str(tmp_path/'file')!r}, chunks())")
    writers = [start_python('-c', code, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    for w in writers: assert w.stdout.readline() == b'writing\n'
    for w in writers[:2]: w.kill(); w.wait()
    assert len(only(tmp_path)) == 3
    write_atomic(tmp_path/'file', [b'mine'])
    assert len(only(tmp_path)) == 2                                # and the file of the one that lives
    writers[2].communicate()
    assert (tmp_path/'file').read_bytes() == b'half whole' and only(tmp_path) == ['file']

@pytest.mark.parametrize('kind', ['folder', 'below a file', 'no room'])
def test_an_error_of_the_disk_names_the_path_that_was_asked_for_and_no_other(tmp_path, kind):
    (tmp_path/'folder').mkdir(); (tmp_path/'file').write_bytes(b'')
    path = {'folder': tmp_path/'folder', 'below a file': tmp_path/'file'/'new', 'no room': '/dev/full'}[kind]
    with pytest.raises(OSError) as e: write_atomic(path, [b'x'*10])
    assert e.value.filename == str(path) and e.value.filename2 is None and '.tinylm-' not in str(e.value)
    assert sorted(only(tmp_path)) == ['file', 'folder'] and only(tmp_path/'folder') == []

def test_an_error_of_whoever_gives_the_chunks_is_left_as_it_is(tmp_path):
    def chunks(): yield b'x'; raise ConnectionError('the line is down')
    with pytest.raises(ConnectionError) as e: write_atomic(tmp_path/'file', chunks())
    assert str(e.value) == 'the line is down' and only(tmp_path) == []

@quick
@given(st.dictionaries(st.sampled_from('abcde'), st.binary(max_size=20), min_size=1),
       st.dictionaries(st.sampled_from('abcdxy'), st.binary(max_size=20)))
def test_files_that_belong_together_replace_those_of_their_kind(files, before):
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, old in before.items(): (folder/name).write_bytes(old)
        write_folder(folder/'.', files, ['[a-e]'])
        others = {name: old for name, old in before.items() if name in 'xy'}
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == files | others

@pytest.mark.parametrize('bad', range(4))
def test_where_one_file_cannot_be_written_none_is(tmp_path, bad):
    before = {name: b'old' for name in 'ac'}
    for name, old in before.items(): (tmp_path/name).write_bytes(old)
    files = dict.fromkeys('abcd', b'new'*9999)
    files['abcd'[bad]] = None
    with pytest.raises(TypeError): write_folder(tmp_path, files, ['?'])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    (tmp_path/'b').mkdir()                             # and a name that a folder has
    with pytest.raises(OSError) as e: write_folder(tmp_path, dict.fromkeys('ab', b'new'), ['?'])
    assert e.value.filename == str(tmp_path/'b') and (tmp_path/'a').read_bytes() == b'old'

def test_whether_a_path_can_be_written_is_found_out_without_a_trace(tmp_path):
    check_writable(tmp_path/'new'/'deep'/'file'); check_writable('/dev/null')
    assert only(tmp_path/'new'/'deep') == []
    ends = os.pipe()
    check_writable(f'/dev/fd/{ends[1]}')                           # where no file can be made beside it
    for end in ends: os.close(end)
    (tmp_path/'file').write_bytes(b'')
    with pytest.raises(OSError) as e: check_writable(tmp_path/'file'/'below')
    assert e.value.filename == str(tmp_path/'file'/'below')

def test_a_file_has_one_owner_at_a_time_and_no_lock_afterwards(tmp_path):
    path = tmp_path/'file'
    with owning(path):
        assert len(only(tmp_path)) == 1
        for _ in range(2):                                         # who is refused takes nothing away
            with pytest.raises(ValueError, match='file is being written by another process'):
                with owning(path): pass
        write_atomic(path, [b'mine'])
        with owning(tmp_path/'other'): pass
    assert only(tmp_path) == ['file']
    with owning(path):                                             # somebody tidies up
        for name in only(tmp_path): (tmp_path/name).unlink()
    assert only(tmp_path) == []

def test_changes_are_the_lines_that_differ():
    def before(x): return x
    def after(x):
        x = abs(x)
        return x
    class Other: pass
    assert Changes(before, before).lines == [] == Changes(Other, Other).lines
    lines = Changes(before, after).lines
    assert [line for line in lines if line[0] == '-'] == ['-    def before(x): return x']
    new = ['+    def after(x):', '+        x = abs(x)', '+        return x']
    assert [line for line in lines if line[0] == '+'] == new
    assert repr(Changes(before, after)) in Changes(before, after)._repr_markdown_()

@given(st.one_of(st.none(), st.text(min_size=1), st.builds(ValueError, st.text())))
def test_a_judgement_is_one_line_whatever_an_answer_does(found):
    def what_is_wrong(answer):
        if isinstance(found, Exception): raise found
        return found
    with redirect_stdout(StringIO()) as out: judge(what_is_wrong, None)
    said = out.getvalue()
    assert said == 'Right.\n' if found is None else said.startswith('Not yet: ')
    if isinstance(found, Exception): assert said.count('\n') == 1 and 'ValueError' in said
