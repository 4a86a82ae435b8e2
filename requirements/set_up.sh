#!/usr/bin/env bash
# Makes a project-local environment from the locks, or finds it up to date.
# The Makefile calls it; by hand:
#
#   requirements/set_up.sh .venv dev [bert] [onnx] [ray] [gpu]
#   requirements/set_up.sh .venv-serving serving
#   requirements/set_up.sh .venv-xla-tpu xla_tpu
#
# PYTHON=... chooses the interpreter of a new environment.
set -euo pipefail
cd "$(dirname "$0")/.."

environment=$1
shift
names=("$@")
locks=()
versions='3.10 3.11'
for name in "${names[@]}"; do
  if [[ ! -f requirements/$name.txt ]]; then
    echo "set_up.sh: there is no requirements/$name.txt" >&2
    exit 2
  fi
  locks+=("requirements/$name.txt")
  # The extras' locks hold only what they add.
  if [[ $name == dev ]]; then
    locks+=(requirements/base.txt)
  fi
  # Current releases of jax have left Python 3.10 behind.
  if [[ $name == xla_* ]]; then
    versions=3.11
  fi
done

# Prints the first interpreter that can carry the project.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.10 python3 python}; do
    if "$candidate" -c '
import ensurepip, sys, venv
fits = "{}.{}".format(*sys.version_info) in sys.argv[1:]
sys.exit(not (fits and sys.implementation.name == "cpython"))
' $versions > /dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "No CPython ${versions/ / or } with venv and pip under the name" \
    "${PYTHON:-python3.11, python3.10, python3 or python}: install one (on" \
    "Debian and Ubuntu the packages python3.11 and python3.11-venv) or name" \
    "one that you have: make PYTHON=/path/to/python3.11" >&2
  return 1
}

pip_install() {
  "$environment/bin/python" -m pip install --quiet \
    --disable-pip-version-check --no-deps "$@"
}

install() {
  pip_install --require-hashes -r requirements/bootstrap.txt
  local files=("${locks[@]/#/--requirement=}")
  # Compiled here, TensorFlow is imported in half the time, also where Python may
  # not write its bytecode (PYTHONDONTWRITEBYTECODE).
  if ! "$environment/bin/uv" --system-certs pip install --quiet --no-deps \
    --compile-bytecode --require-hashes --python "$environment/bin/python" "${files[@]}"; then
    echo 'uv could not install the packages; trying pip, which is slower.'
    pip_install --require-hashes "${files[@]}"
  fi
  if [[ " ${names[*]} " == *' dev '* ]]; then
    pip_install --no-build-isolation --editable .
  fi
}

if [[ "$(uname -s) $(uname -m)" != 'Linux x86_64' ]]; then
  echo "TensorFlow Federated has packages for Linux on x86-64 only, and this" \
    "is $(uname -s) on $(uname -m): use a Linux x86-64 machine, container" \
    'or WSL 2.' >&2
  exit 1
fi

# Two makes that start together in one clone take turns.
exec 9< requirements/bootstrap.txt
if command -v flock > /dev/null; then
  flock 9
fi

if [[ -n ${PYTHON:-} && -x $environment/bin/python ]]; then
  if [[ $("$PYTHON" --version) != $("$environment/bin/python" --version) ]]
  then
    echo "$environment has $("$environment/bin/python" --version), and" \
      "PYTHON=$PYTHON is $("$PYTHON" --version): run 'make clean' first" >&2
    exit 1
  fi
fi

stamp=$environment/.set-up-$(IFS=-; echo "${names[*]}")
fingerprint=$({ pwd; cat setup.py "$0" requirements/bootstrap.txt \
  "${locks[@]}"; } | sha256sum)
if [[ -x $environment/bin/python && ! -e $environment/.incomplete &&
  -e $stamp && $(< "$stamp") == "$fingerprint" ]]; then
  exit 0
fi

if [[ -e $environment/.incomplete || ! -x $environment/bin/python ]]; then
  rm -rf "$environment"
  python=$(find_python)
  mkdir "$environment"
  touch "$environment/.incomplete"
  echo "Making $environment with $("$python" --version): ${locks[*]}"
  "$python" -m venv "$environment"
else
  touch "$environment/.incomplete"
  echo "Bringing $environment up to date: ${locks[*]}"
fi
install
echo "$fingerprint" > "$stamp"
rm "$environment/.incomplete"
echo "$environment is ready after $SECONDS s."
