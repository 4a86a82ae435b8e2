import pytest

from research.privacy import journal


def test_releases_are_counted_over_processes(tmp_path):
  path = tmp_path / 'journal.txt'
  first = journal.Journal(path)
  assert (first.releases, first.rounds, first.repeated()) == (0, 0, [])
  assert not path.exists()
  for round_num in (1, 2, 3):
    first.append(round_num)
  again = journal.Journal(path)
  again.append(2)
  again.append(3)
  last = journal.Journal(path)
  last.append(3)
  assert (last.releases, last.rounds) == (6, 3)
  assert sorted(last.repeated()) == [2, 3]
  # A run that goes on after round 2 will draw round 3 once more.
  assert sorted(last.repeated(range(3, 9))) == [2, 4]
  assert sorted(last.repeated(range(4, 9))) == [2, 3]


def test_a_torn_line_was_no_release(tmp_path):
  path = tmp_path / 'journal.txt'
  path.write_text('1\n2\n1')
  torn = journal.Journal(path)
  assert torn.releases == 2
  torn.append(3)
  assert path.read_text() == '1\n2\n3\n'


def test_a_journal_that_lacks_rounds_is_refused(tmp_path):
  path = tmp_path / 'journal.txt'
  with pytest.raises(journal.JournalError, match='lacks round 1, .* round 2'):
    journal.Journal(path).check(2)
  path.write_text('1\n3\n')
  journal.Journal(path).check(1)
  with pytest.raises(journal.JournalError, match='lacks round 2'):
    journal.Journal(path).check(3)
  path.write_text('1\nx\n')
  with pytest.raises(journal.JournalError, match='damaged'):
    journal.Journal(path)
