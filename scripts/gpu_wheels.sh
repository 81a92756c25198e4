#!/usr/bin/env bash
# The wheels that a machine with a GPU lacks (it has torch, Triton and numpy, Python 3.12, Linux on x86-64), into .whl/,
# where scripts/gpu.sh finds them. On a machine with internet and Python 3.12: PYTHON names another one. pesq comes as
# source alone and is built here, with a C compiler; where that fails, scores go without it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.12}
"$python" -c 'import sys; assert sys.version_info[:2] == (3, 12), sys.version'
mkdir -p .whl
"$python" -m pip download -q --no-deps --only-binary :all: -d .whl \
  soundfile cffi pycparser soxr safetensors click pystoi scipy pytest pytest-xdist execnet pluggy iniconfig packaging \
  pygments hypothesis sortedcontainers pydantic pydantic-core annotated-types typing-inspection typing-extensions
"$python" -m pip wheel -q --no-deps -w .whl pesq || echo "pesq could not be built: left out" >&2
du -ch .whl/*.whl | tail -1
