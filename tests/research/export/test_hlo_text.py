"""Loops, parts and named instructions of HLO, on a module to read."""

import pytest

from research.export import hlo_text

# Three steps of an outer loop, in each five of an inner one.
NESTED = """HloModule nested

%sum (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[] parameter(0)
  %b.1 = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a.1, %b.1)
}

%inner_body (p.1: (s32[], s32[], f32[4,4])) -> (s32[], s32[], f32[4,4]) {
  %p.1 = (s32[], s32[], f32[4,4]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %one.1 = s32[] constant(1)
  %next.1 = s32[] add(%i.1, %one.1)
  %limit.1 = s32[] get-tuple-element(%p.1), index=1
  %x.1 = f32[4,4]{1,0} get-tuple-element(%p.1), index=2
  %dot.1 = f32[4,4]{1,0} dot(%x.1, %x.1), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}, \
metadata={op_name="while/while/dense/MatMul"}
  ROOT %t.1 = (s32[], s32[], f32[4,4]{1,0}) tuple(%next.1, %limit.1, %dot.1)
}

%less (v.1: s32[], w.1: s32[]) -> pred[] {
  %v.1 = s32[] parameter(0)
  %w.1 = s32[] parameter(1)
  ROOT %compare.1 = pred[] compare(%v.1, %w.1), direction=LT
}

%inner_condition (p.2: (s32[], s32[], f32[4,4])) -> pred[] {
  %p.2 = (s32[], s32[], f32[4,4]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %limit.2 = s32[] get-tuple-element(%p.2), index=1
  ROOT %call.2 = pred[] call(%i.2, %limit.2), to_apply=%less
}

%outer_body (p.3: (s32[], s32[], f32[4,4])) -> (s32[], s32[], f32[4,4]) {
  %p.3 = (s32[], s32[], f32[4,4]{1,0}) parameter(0)
  %zero.3 = s32[] constant(0)
  %limit.3 = s32[] get-tuple-element(%p.3), index=1
  %x.3 = f32[4,4]{1,0} get-tuple-element(%p.3), index=2
  %init.3 = (s32[], s32[], f32[4,4]{1,0}) tuple(%zero.3, %limit.3, %x.3)
  %while.3 = (s32[], s32[], f32[4,4]{1,0}) while(%init.3), \
condition=%inner_condition, body=%inner_body
  %y.3 = f32[4,4]{1,0} get-tuple-element(%while.3), index=2
  %i.3 = s32[] get-tuple-element(%p.3), index=0
  %two.3 = s32[] constant(2)
  %next.3 = s32[] add(%i.3, %two.3)
  ROOT %t.3 = (s32[], s32[], f32[4,4]{1,0}) tuple(%next.3, %limit.3, %y.3)
}

%outer_condition (p.4: (s32[], s32[], f32[4,4])) -> pred[] {
  %p.4 = (s32[], s32[], f32[4,4]{1,0}) parameter(0)
  %i.4 = s32[] get-tuple-element(%p.4), index=0
  %six.4 = s32[] constant(6)
  ROOT %compare.4 = pred[] compare(%i.4, %six.4), direction=LT
}

ENTRY %main (x.5: f32[4,4], n.5: s32[]) -> f32[] {
  %x.5 = f32[4,4]{1,0} parameter(0), \
metadata={op_name="XLA_Args"}
  %n.5 = s32[] parameter(1)
  %zero.5 = s32[] constant(0)
  %five.5 = s32[] constant(5)
  %init.5 = (s32[], s32[], f32[4,4]{1,0}) tuple(%zero.5, %five.5, %x.5)
  %while.5 = (s32[], s32[], f32[4,4]{1,0}) while(%init.5), \
condition=%outer_condition, body=%outer_body, \
metadata={op_name="while"}
  %y.5 = f32[4,4]{1,0} get-tuple-element(%while.5), index=2
  %custom.5 = f32[4,4]{1,0} custom-call(%y.5), \
custom_call_target="no_such_kernel", \
metadata={op_name="conv_1/Odd"}
  %fft.5 = c64[4,4]{1,0} fft(%custom.5), fft_type=FFT, \
metadata={op_name="small/FFT"}
  %fft.6 = c128[8]{0} fft(%custom.5), fft_type=FFT, \
metadata={op_name="large/FFT"}
  %float.5 = f32[] constant(0)
  ROOT %reduce.5 = f32[] reduce(%y.5, %float.5), \
dimensions={0,1}, to_apply=%sum
}
"""


@pytest.fixture(name='module', scope='module')
def _module():
  return hlo_text.Module(NESTED)


def test_loops_are_counted_by_running_their_integers(module):
  assert module.entry == 'main'
  (outer,) = module.loops('main')
  assert outer.trip_count == 3
  assert (outer.condition, outer.body) == ('outer_condition', 'outer_body')
  # The counter changes from step to step, the inner loop's limit does not.
  assert outer.arguments == [(None, 5, None)]
  (inner,) = module.loops(outer.body, outer.arguments)
  assert inner.trip_count == 5
  assert list(module.loops(inner.body, inner.arguments)) == []


def test_a_loop_bounded_by_an_argument_is_unknown():
  text = NESTED.replace(
    'tuple(%zero.5, %five.5, %x.5)', 'tuple(%zero.5, %n.5, %x.5)'
  )
  module = hlo_text.Module(text)
  (outer,) = module.loops('main')
  assert outer.trip_count == 3
  (inner,) = module.loops(outer.body, outer.arguments)
  assert inner.trip_count is None


def test_an_inner_loop_that_grows_with_the_outer_one_is_unknown():
  text = NESTED.replace(
    'tuple(%next.3, %limit.3, %y.3)', 'tuple(%next.3, %next.3, %y.3)'
  )
  module = hlo_text.Module(text)
  (outer,) = module.loops('main')
  (inner,) = module.loops(outer.body, outer.arguments)
  assert (outer.trip_count, inner.trip_count) == (3, None)


def test_the_compilers_own_count_goes_first(module):
  text = NESTED.replace(
    'body=%outer_body,',
    'body=%outer_body, backend_config={"known_trip_count":{"n":"7"}},',
  )
  (outer,) = hlo_text.Module(text).loops('main')
  assert outer.trip_count == 7


def test_a_loop_in_a_called_computation_is_found():
  text = NESTED.replace('ENTRY %main', '%main')
  text += """
ENTRY %caller (x.9: f32[4,4], n.9: s32[]) -> f32[] {
  %x.9 = f32[4,4]{1,0} parameter(0)
  %n.9 = s32[] parameter(1)
  ROOT %call.9 = f32[] call(%x.9, %n.9), to_apply=%main
}
"""
  module = hlo_text.Module(text)
  assert [loop.trip_count for loop in module.loops('caller')] == [3]


LOCK_STEP = """HloModule lock_step

%or (a.1: pred[], b.1: pred[]) -> pred[] {
  %a.1 = pred[] parameter(0)
  %b.1 = pred[] parameter(1)
  ROOT %or.1 = pred[] or(%a.1, %b.1)
}

%body (p.2: (pred[3], s32[3])) -> (pred[3], s32[3]) {
  %p.2 = (pred[3]{0}, s32[3]{0}) parameter(0)
  %active.2 = pred[3]{0} get-tuple-element(%p.2), index=0
  %i.2 = s32[3]{0} get-tuple-element(%p.2), index=1
  %ones.2 = s32[3]{0} constant({1, 1, 1})
  %next.2 = s32[3]{0} add(%i.2, %ones.2)
  %new.2 = s32[3]{0} select(%active.2, %next.2, %i.2)
  %steps.2 = s32[] constant(4)
  %all.2 = s32[3]{0} broadcast(%steps.2), dimensions={}
  %less.2 = pred[3]{0} compare(%new.2, %all.2), direction=LT
  ROOT %t.2 = (pred[3]{0}, s32[3]{0}) tuple(%less.2, %new.2)
}

%condition (p.3: (pred[3], s32[3])) -> pred[] {
  %p.3 = (pred[3]{0}, s32[3]{0}) parameter(0)
  %active.3 = pred[3]{0} get-tuple-element(%p.3), index=0
  %false.3 = pred[] constant(false)
  ROOT %any.3 = pred[] reduce(%active.3, %false.3), dimensions={0}, to_apply=%or
}

ENTRY %main (x.4: s32[3]) -> s32[3] {
  %x.4 = s32[3]{0} parameter(0)
  %true.4 = pred[] constant(true)
  %active.4 = pred[3]{0} broadcast(%true.4), dimensions={}
  %zeros.4 = s32[3]{0} constant({0, 0, 0})
  %init.4 = (pred[3]{0}, s32[3]{0}) tuple(%active.4, %zeros.4)
  %while.4 = (pred[3]{0}, s32[3]{0}) while(%init.4), condition=%condition, \
body=%body
  ROOT %i.4 = s32[3]{0} get-tuple-element(%while.4), index=1
}
"""


def test_clients_in_lock_step_are_counted_where_all_do_the_same():
  (loop,) = hlo_text.Module(LOCK_STEP).loops('main')
  assert loop.trip_count == 4
  for old, new in (
    ('constant({0, 0, 0})', 'constant({0, 1, 0})'),
    ('tuple(%active.4, %zeros.4)', 'tuple(%active.4, %x.4)'),
  ):
    (loop,) = hlo_text.Module(LOCK_STEP.replace(old, new)).loops('main')
    assert loop.trip_count is None


def test_a_part_ends_with_its_entry(module):
  part = module.part('inner_body')
  assert part.startswith('HloModule ')
  assert part.count('ENTRY') == 1
  assert 'ENTRY %inner_body' in part
  assert '%sum' in part
  assert 'outer' not in part
  assert hlo_text.Module(part).entry == 'inner_body'


def test_product_types(module):
  assert module.product_types() == ['f32']


@pytest.mark.parametrize(
  'error, expected',
  [
    ('INTERNAL: during %dot.1 something broke', ['while/while/dense/MatMul']),
    ('No implementation of "no_such_kernel" for TPU', ['conv_1/Odd']),
    ('Unexpected operand type for FFT: c128[8]{0}', ['large/FFT']),
    ('FFT is not supported', ['small/FFT', 'large/FFT']),
    ('Ran out of memory: a call needs a copy of a constant', []),
    # The path of a Python file is not what the error is about.
    ('broken\n\nSuspected Python Code Location:\n  fft/dot/ops.py:1', []),
  ],
)
def test_an_error_leads_to_its_instructions(module, error, expected):
  assert [found['op_name'] for found in module.about(error)] == expected
