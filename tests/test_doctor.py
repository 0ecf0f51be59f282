"The doctor finds what is wrong with a machine, and never falls ill itself."
from types import SimpleNamespace

import pytest
import torch
from helpers import small_model

from tinylm import cache, doctor
from tinylm.cli import main
from tinylm.doctor import Finding, about_model, checkup

def bad(findings): return [f.name for f in findings if not f.good and not f.needed]

def test_this_machine_is_well_and_its_chance_is_left_alone():
    before = torch.get_rng_state()
    findings = checkup()
    assert not bad(findings)
    assert {'python', 'torch', 'folder', 'the law', 'greedy text'} <= {f.name for f in findings}
    assert torch.equal(torch.get_rng_state(), before)

def test_a_broken_cache_breaks_the_law(monkeypatch, capsys):
    attend = cache.Cached.attend
    assert about_model(small_model().eval()).good
    monkeypatch.setattr(cache.Cached, 'attend', lambda self, *a, **k: attend(self, *a, **k)*1.1)
    assert 'the law' in bad(checkup()) and not about_model(small_model().eval()).good
    assert main(['doctor']) == 2
    out, err = capsys.readouterr()
    assert 'NO  the law' in out and err.count('\n') == 1 and 'something is wrong with: the law' in err

def test_a_folder_that_cannot_be_written_is_a_finding(monkeypatch, tmp_path):
    (tmp_path/'file').touch()
    monkeypatch.setenv('TINYLM_DATA', str(tmp_path/'file'/'below'))
    assert bad(checkup()) == ['folder']

def test_a_folder_that_is_not_there_yet_is_made(monkeypatch, tmp_path):
    monkeypatch.setenv('TINYLM_DATA', str(tmp_path/'new'/'deep'))
    for _ in range(2): assert not bad(checkup())

@pytest.mark.parametrize('free, good', [(0, False), (99e6, False), (101e6, True), (123.4e9, True)])
def test_the_room_of_the_folder_is_said_and_judged(monkeypatch, free, good):
    monkeypatch.setattr(doctor.shutil, 'disk_usage', lambda _: SimpleNamespace(free=free))
    folder, = (f for f in checkup() if f.name == 'folder')
    assert folder.good == good and folder.found.endswith(f', {free/1e9:.1f} GB free')

@pytest.mark.parametrize('there', [True, False])
def test_an_accelerator_and_programs_are_good_when_there_and_no_illness_when_not(monkeypatch, there):
    kind = torch.device('cuda') if there else None
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: there)
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda: kind)
    monkeypatch.setattr(doctor.shutil, 'which', lambda name: there and f'/bin/{name}' or None)
    found = {f.name: f for f in checkup()}
    names = 'accelerator', 'compiler', 'quarto'
    assert [found[n].good for n in names] == [there]*3 and not bad(found.values())
    says = ['cuda', '/bin/c++', '/bin/quarto'] if there else ['none', 'not on the path', 'not on the path']
    assert [found[n].found for n in names] == says

def test_a_missing_package_is_said_with_its_purpose(monkeypatch):
    def version(name):
        if name in ('matplotlib', 'safetensors'): raise doctor.PackageNotFoundError
        return '1.0'
    monkeypatch.setattr(doctor, 'version', version)
    found = {f.name: f for f in checkup()}
    assert str(found['matplotlib']) == '--  matplotlib   is not installed (for figures)'
    assert str(found['safetensors']) == 'NO  safetensors  is not installed'

@pytest.mark.parametrize('good,needed,mark', [(True, '', 'ok'), (True, 'x', 'ok'), (False, 'x', '--'),
                                              (False, '', 'NO')])
def test_a_finding_is_one_line_with_a_mark(good, needed, mark):
    assert str(Finding('name', 'found', good, needed)).startswith(mark)
