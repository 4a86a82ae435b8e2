#!/usr/bin/env bash
# Compiles each requirements/NAME.in to requirements/NAME.txt: every package
# pinned and hashed, for Python 3.10 and 3.11 at once (xla_* and peer_* for 3.11
# only). The present pins are kept where the inputs still allow them.
#
#   requirements/lock.sh                  write the .txt files
#   requirements/lock.sh --upgrade        write them with the newest releases
#   requirements/lock.sh --check          change nothing; fail if they differ
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-write}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
stale=()
python_version=3.10
shared=(--override requirements/overrides.txt
  --constraint requirements/constraints.txt)

# compile NAME [further arguments of uv pip compile]
compile() {
  local name=$1 lock=requirements/$1.txt
  shift
  local output=$lock options=()
  if [[ $mode == --check ]]; then
    output=$scratch/$name.txt
    [[ ! -e $lock ]] || cp "$lock" "$output"
  elif [[ $mode == --upgrade ]]; then
    options=(--upgrade)
  fi
  .venv/bin/uv --system-certs --no-python-downloads pip compile --quiet --universal \
    --python .venv/bin/python --python-version "$python_version" \
    --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
    "${shared[@]}" "${options[@]}" "$@" "requirements/$name.in" \
    --output-file "$output" \
    > "$scratch/stdout"
  if [[ $mode == --check ]] && ! diff -u "$lock" "$output"; then
    stale+=("$lock")
  fi
}

case $mode in
  write | --upgrade | --check) ;;
  *)
    echo "lock.sh: unknown argument '$mode'; give --upgrade, --check or none" >&2
    exit 2
    ;;
esac

compile bootstrap
compile base
# What a further file shares with base.txt has the same version in both, so
# that they can be installed together.
for name in dev bert onnx ray gpu; do
  compile "$name" --constraint requirements/base.txt
done
compile serving
# The compilers of experiments.export_xla come with a newer jax than TFF has,
# and it needs a newer Python.
python_version=3.11
shared=()
for name in xla_cpu xla_tpu xla_gpu; do
  compile "$name"
done
# What the benchmark compares with never shares an environment with TFF.
for name in peer_pfl peer_fedjax peer_flower; do
  compile "$name"
done

if ((${#stale[@]})); then
  echo "Out of step with their inputs: ${stale[*]}. Run: make lock" >&2
  exit 1
fi
