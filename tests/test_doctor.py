"The doctor finds what is wrong with a machine, and never falls ill itself."
import pytest
import torch

from tinylm import cache, doctor
from tinylm.cli import main
from tinylm.doctor import Finding, checkup

def bad(findings): return [f.name for f in findings if not f.good and not f.needed]

def test_this_machine_is_well_and_its_chance_is_left_alone():
    before = torch.get_rng_state()
    findings = checkup()
    assert not bad(findings)
    assert {'python', 'torch', 'folder', 'the law', 'greedy text'} <= {f.name for f in findings}
    assert torch.equal(torch.get_rng_state(), before)

def test_a_broken_cache_breaks_the_law(monkeypatch, capsys):
    attend = cache.Cached.attend
    monkeypatch.setattr(cache.Cached, 'attend', lambda self, *a, **k: attend(self, *a, **k)*1.01)
    assert 'the law' in bad(checkup())
    assert main(['doctor']) == 2
    out, err = capsys.readouterr()
    assert 'NO  the law' in out and err.count('\n') == 1 and 'something is wrong with: the law' in err

def test_a_folder_that_cannot_be_written_is_a_finding(monkeypatch, tmp_path):
    (tmp_path/'file').touch()
    monkeypatch.setenv('TINYLM_DATA', str(tmp_path/'file'/'below'))
    assert bad(checkup()) == ['folder']

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
