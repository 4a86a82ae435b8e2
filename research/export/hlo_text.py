"""Reads the text of an HLO module: its loops, its parts, what an error names.

Needs the standard library alone, since the compilers' environments have nothing
of this project. The text is that of a current XLA's `HloModule.to_string()`.
"""

import collections
import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) .*\{$')
_INSTRUCTION = re.compile(
  r'^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\(([^)]*)\)(.*)'
)
_NAME = re.compile(r'%([\w.-]+)')
_SHAPE = re.compile(r'\b(?:[a-z]+\d+\w*|pred)\[[\d,]*\]')
_INTEGER = re.compile(r'^(pred|[su]\d+)\[')
_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(r'(?:to_apply|calls)=%?([\w.-]+)')
_OPERATIONS = {
  'add': operator.add,
  'subtract': operator.sub,
  'multiply': operator.mul,
  'minimum': min,
  'maximum': max,
  'and': operator.and_,
  'or': operator.or_,
  'not': operator.not_,
}
# What gives an array of one number from an array of one number.
_UNCHANGED = ('bitcast', 'broadcast', 'convert', 'copy', 'reshape', 'transpose')
_FOLLOWED = {
  *_OPERATIONS,
  *_UNCHANGED,
  'call',
  'compare',
  'fusion',
  'get-tuple-element',
  'reduce',
  'select',
  'tuple',
}
# No compiler fails for these themselves, and their names are common words.
_NEVER_MEANT = ('call', 'constant', 'copy', 'parameter', 'tuple', 'while')
_MOST_STEPS = 1_000_000

# What is known of a value: an integer (of an array: that all elements are that
# integer), a tuple of values, or nothing (None).
Value = Any
Instruction = collections.namedtuple(
  'Instruction', 'name shape opcode operands attributes'
)
Loop = collections.namedtuple('Loop', 'trip_count condition body arguments')


class Module:
  """An HLO module by computation.

  Attributes:
    entry: Name of the entry computation.
  """

  def __init__(self, text: str):
    """Parses the text of a module."""
    self._lines: dict[str, list[str]] = {}
    self._instructions: dict[str, dict[str, Instruction]] = {}
    self._roots: dict[str, str] = {}
    self.entry = ''
    current = None
    for line in text.splitlines()[1:]:
      if match := _COMPUTATION.match(line):
        current = match[2]
        self._lines[current], self._instructions[current] = [], {}
        if match[1]:
          self.entry = current
      if current is None:
        continue
      self._lines[current].append(line)
      if match := _INSTRUCTION.match(line):
        root, name, shape, opcode, operands, attributes = match.groups()
        self._instructions[current][name] = Instruction(
          name, shape, opcode, operands, attributes
        )
        if root:
          self._roots[current] = name
      elif line == '}':
        current = None

  def part(self, name: str) -> str:
    """The text of a module whose entry is the computation of that name."""
    lines = ['HloModule part', '']
    for current, own in self._lines.items():
      first = own[0].removeprefix('ENTRY ')
      lines += ['ENTRY ' + first if current == name else first, *own[1:], '']
      # What a computation calls stands before it.
      if current == name:
        break
    return '\n'.join(lines)

  def loops(self, name: str, arguments: Sequence[Value] = ()) -> Iterator[Loop]:
    """Yields the loops of a computation and of what it calls.

    Loops inside of these loops are left out: ask with the loop's body.

    Args:
      name: Of the computation.
      arguments: What is known of its parameters.

    Yields:
      How often the body runs, None where that is unknown; the names of
      condition and body; what is known of the body's parameter in every step.
    """
    for instruction in self._instructions[name].values():
      if instruction.opcode == 'while':
        yield self._loop(name, instruction, arguments)
        continue
      known = ()
      if instruction.opcode == 'call':
        known = self._operands(name, instruction, arguments)
      for called in _NAME.findall(instruction.attributes):
        if called in self._instructions:
          yield from self.loops(called, known)

  def product_types(self) -> list[str]:
    """Types of what matrix products and convolutions multiply, as f32."""
    types = set()
    for computation in self._instructions.values():
      for instruction in computation.values():
        if instruction.opcode in ('convolution', 'dot'):
          for name in _NAME.findall(instruction.operands):
            types.add(computation[name].shape.partition('[')[0])
    return sorted(types)

  def about(self, error: str) -> list[dict[str, str]]:
    """Finds the instructions that a compiler's error is about.

    Args:
      error: The compiler's words.

    Returns:
      For each instruction that it names (else: that calls what it names, or is
      of an opcode that it names; of these the ones with a shape that it names,
      if any) its `name`, `opcode` and `op_name`, TensorFlow's name of the node.
    """
    # An error may end in a path of the Python code, whose words mean nothing.
    message = error.split('Suspected Python Code Location')[0]
    words = set(re.findall(r'[\w.-]*\w', message))
    lower = {word.lower() for word in words} - set(_NEVER_MEANT)
    found = [
      instruction
      for computation in self._instructions.values()
      for instruction in computation.values()
    ]
    chosen = [i for i in found if '.' in i.name and i.name in words]
    if not chosen:
      chosen = [
        i
        for i in found
        if i.opcode in lower
        or _quoted(i.attributes, 'custom_call_target') in words
      ]
      shapes = set(_SHAPE.findall(message))
      of_shape = [i for i in chosen if shapes & self._shapes(i)]
      chosen = of_shape or chosen
    return [
      {
        'name': i.name,
        'opcode': i.opcode,
        'op_name': _quoted(i.attributes, 'op_name'),
      }
      for i in chosen
    ]

  def _shapes(self, instruction: Instruction) -> set[str]:
    """Shapes of an instruction's result and operands."""
    texts = [instruction.shape]
    for computation in self._instructions.values():
      if instruction.name in computation:
        operands = _NAME.findall(instruction.operands)
        texts += [computation[name].shape for name in operands]
    return set(_SHAPE.findall(' '.join(texts)))

  def _loop(
    self, computation: str, instruction: Instruction, arguments: Sequence[Value]
  ) -> Loop:
    condition = re.search(r'condition=%?([\w.-]+)', instruction.attributes)[1]
    body = re.search(r'body=%?([\w.-]+)', instruction.attributes)[1]
    (initial,) = self._operands(computation, instruction, arguments)
    state, count = initial, 0
    while count < _MOST_STEPS:
      goes_on = self._root(condition, [state])
      if not goes_on:
        break
      state = self._root(body, [state])
      count += 1
    else:
      goes_on = None
    if goes_on is None:
      count = None
    if stated := _TRIP_COUNT.search(instruction.attributes):
      count = int(stated[1])
    after = self._root(body, [initial])
    return Loop(count, condition, body, [_common(initial, after)])

  def _root(self, computation: str, arguments: Sequence[Value]) -> Value:
    return self._value(computation, self._roots[computation], arguments, {})

  def _reduce(self, computation: str, values: Sequence[Value]) -> Value:
    """Whether any or all of equal values are true; their extremes."""
    root = self._instructions[computation][self._roots[computation]]
    single = len(values) == 2
    if not single or root.opcode not in ('and', 'or', 'minimum', 'maximum'):
      return None
    return _OPERATIONS[root.opcode](*values)

  def _operands(
    self,
    computation: str,
    instruction: Instruction,
    arguments: Sequence[Value],
    seen: dict[str, Value] | None = None,
  ) -> list[Value]:
    seen = {} if seen is None else seen
    return [
      self._value(computation, name, arguments, seen)
      for name in _NAME.findall(instruction.operands)
    ]

  def _value(
    self,
    computation: str,
    name: str,
    arguments: Sequence[Value],
    seen: dict[str, Value],
  ) -> Value:
    """What is known of an instruction's result; only integers are followed."""
    if name not in seen:
      # No cycle can be: HLO is in single-assignment form.
      instruction = self._instructions[computation][name]
      seen[name] = None
      if instruction.shape.startswith('(') or _INTEGER.match(instruction.shape):
        seen[name] = self._evaluate(computation, instruction, arguments, seen)
    return seen[name]

  def _evaluate(
    self,
    computation: str,
    instruction: Instruction,
    arguments: Sequence[Value],
    seen: dict[str, Value],
  ) -> Value:
    opcode, text = instruction.opcode, instruction.operands
    attributes = instruction.attributes
    if opcode == 'parameter':
      return arguments[int(text)] if int(text) < len(arguments) else None
    if opcode == 'constant':
      return _literal(text)
    if opcode not in _FOLLOWED:
      return None
    values = self._operands(computation, instruction, arguments, seen)
    if opcode in ('call', 'fusion'):
      return self._root(_CALLED.search(attributes)[1], values)
    if opcode == 'tuple':
      return tuple(values)
    if opcode == 'get-tuple-element':
      index = int(re.search(r'index=(\d+)', attributes)[1])
      return None if values[0] is None else values[0][index]
    if opcode == 'select':
      chosen, taken, other = values
      if chosen is None:
        return _common(taken, other)
      return taken if chosen else other
    if None in values:
      return None
    if opcode in _UNCHANGED:
      return values[0]
    if opcode == 'reduce':
      return self._reduce(_CALLED.search(attributes)[1], values)
    if opcode == 'compare':
      direction = re.search(r'direction=([A-Z]+)', attributes)[1]
      return getattr(operator, direction.lower())(*values)
    return _OPERATIONS[opcode](*values)


def _literal(text: str) -> Value:
  """The number that all elements of a constant are, if there is one."""
  words = set(re.findall(r'true|false|-?\d+', text))
  if len(words) != 1 or '...' in text:
    return None
  word = words.pop()
  return word == 'true' if word in ('true', 'false') else int(word)


def _common(one: Value, other: Value) -> Value:
  """What is known of both values."""
  if isinstance(one, tuple) and isinstance(other, tuple):
    return tuple(map(_common, one, other))
  return one if one == other else None


def _quoted(attributes: str, key: str) -> str:
  match = re.search(rf'\b{key}="([^"]*)"', attributes)
  return match[1] if match else ''
