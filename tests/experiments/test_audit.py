"""Runs of the binary that audit themselves, and those that may not."""

import json

import numpy as np
import pytest
from absl import flags

from experiments import emnist
from research import cli
from research.aggregators import dp
from research.privacy import audit, audit_report
from tests.experiments import binary

AUDITED = (
  *binary.TINY,
  '--dp_mechanism=gaussian',
  '--noise_multiplier=4',
  '--delta=1e-6',
  '--clipping=fixed',
  '--clip_norm=0.5',
  '--client_weighting=uniform',
  '--client_sampling=poisson',
  '--insecure_seeded_noise',
  '--audit_canaries=60',
)


def run(root, *arguments):
  given = [*AUDITED, f'--root_output_dir={root}', *arguments]
  with binary.parsed('emnist', *given):
    emnist.main(['emnist'])
  return read(root)


def read(root):
  return json.loads((root / 'emnist' / 'audit.json').read_text())


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  root = tmp_path_factory.mktemp('whole')
  run(root)
  return root


def test_a_sound_run_reports_its_audit(whole):
  found = read(whole)
  privacy = json.loads((whole / 'emnist' / 'privacy.json').read_text())
  assert found['canaries'] == 60
  assert found['epsilon_claimed'] == privacy['epsilon']
  assert found['delta'] == privacy['delta']
  assert 0 <= found['correct'] <= found['guesses']
  assert found['epsilon_lower_bound'] < found['epsilon_claimed'] < 1
  assert not found['is_violated']
  card = (whole / 'emnist' / 'model_card.md').read_text()
  assert found['statement'] in card
  assert card.index('**Guarantee.**') < card.index('**Audit.**')


def test_a_resumed_run_has_the_audit_of_a_whole_one(whole, tmp_path, capsys):
  run(tmp_path, '--total_rounds=2', '--noexport')
  assert run(tmp_path, '--noexport') == read(whole)
  assert 'audit                     epsilon >= ' in capsys.readouterr().out


class Spy:
  """Calls a function and keeps what it was called with."""

  def __init__(self, function):
    self._function = function

  def __call__(self, *arguments):
    self.arguments = arguments
    return self._function(*arguments)


def test_a_run_without_noise_ends_loudly(tmp_path, monkeypatch, capsys):
  """Without noise and learning the model is the sum of the canaries."""
  examine = Spy(audit_report.examine)
  monkeypatch.setattr(audit_report, 'examine', examine)
  monkeypatch.setattr(dp, 'add_noise', lambda x, key, stream, stddev: x)
  with pytest.raises(audit_report.ViolationError, match='CONTRADICTS'):
    run(
      tmp_path,
      '--client_learning_rate=0',
      '--clients_per_round=7',
      '--total_rounds=6',
      '--noise_multiplier=8',
    )
  canaries, released, rounds, _ = examine.arguments
  assert rounds == 6
  assert canaries.probability == 0.5
  total, times = np.zeros(650), np.zeros(60)
  for round_num in range(1, 7):
    for canary in canaries.taking_part(round_num):
      times[canary] += 1
      total += canaries.direction(canary)
  assert times[canaries.is_included].mean() == pytest.approx(3, abs=0.5)
  # Clipped from ten times the norm to a ten thousandth less than the norm, over
  # the expected cohort.
  vector = np.concatenate([np.ravel(part) for part in released])
  np.testing.assert_allclose(vector, total * 0.5 * (1 - 1e-4) / 7, atol=1e-6)

  found = read(tmp_path)
  assert found['included'] == canaries.is_included.sum()
  # Of 60, guesses are made on 8 at either end.
  scores = [float(total @ canaries.direction(i)) for i in range(60)]
  order = sorted(range(60), key=scores.__getitem__)
  right = [canaries.is_included[i] for i in order[-8:]]
  right += [not canaries.is_included[i] for i in order[:8]]
  assert (found['guesses'], found['correct']) == (16, sum(right))
  assert found['epsilon_lower_bound'] == audit.epsilon_lower_bound(
    1e-6, 60, 16, sum(right)
  )
  assert found['epsilon_lower_bound'] > found['epsilon_claimed']
  assert f'{sum(right)} of 16 guesses), > ' in capsys.readouterr().out
  card = (tmp_path / 'emnist' / 'model_card.md').read_text()
  privacy = card.partition('## Privacy')[2].strip()
  assert privacy.startswith('**THE AUDIT CONTRADICTS THE GUARANTEE')
  assert (tmp_path / 'emnist' / 'model' / '1' / 'saved_model.pb').is_file()


def test_a_violation_has_an_exit_code_of_its_own(capsys):
  def main(argv):
    raise audit_report.ViolationError('THE AUDIT CONTRADICTS')

  with pytest.raises(SystemExit) as error:
    cli._guard(main)([])
  assert error.value.code == 3
  assert capsys.readouterr().err == 'error: THE AUDIT CONTRADICTS\n'


REFUSED = (
  (['--client_sampling=fixed_size'], 'would take the place of another client'),
  (
    ['--poison=label_flip', '--poisoned_fraction=0.1'],
    '--poison=label_flip: both change what clients send',
  ),
  (
    ['--algorithm=ditto'],
    '--algorithm=ditto has no form; fed_avg, fed_prox have',
  ),
  (
    ['--dp_mechanism=none', '--clipping=none', '--noinsecure_seeded_noise'],
    '--audit_canaries .* not used without --dp_mechanism',
  ),
)


@pytest.mark.parametrize('arguments, message', REFUSED, ids=str)
def test_what_can_not_be_audited_is_refused(arguments, message):
  given = list(AUDITED)
  if '--dp_mechanism=none' in arguments:
    given = [f for f in given if 'noise' not in f and 'clip' not in f]
  with (
    binary.parsed('emnist', *given, *arguments),
    pytest.raises(flags.IllegalFlagValueError, match=message),
  ):
    emnist.GROUPS.algorithm.get(None)
