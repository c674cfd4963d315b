#!/bin/sh
# A campaign whose trainings share one NVIDIA GPU through its multi-process service, if installed:
#   sh benchmarks/beside.sh PLAN --at-once 5 --minutes 27
# Without the service the trainings take turns on the GPU: twice as long for small networks.
set -eu
if command -v nvidia-cuda-mps-control >/dev/null && [ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ]; then
    CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)
    CUDA_MPS_LOG_DIRECTORY=$CUDA_MPS_PIPE_DIRECTORY
    export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
    nvidia-cuda-mps-control -d
    trap 'echo quit | nvidia-cuda-mps-control' EXIT
fi
python=.venv/bin/python
[ -x "$python" ] || python=python3
"${PYTHON:-$python}" -m leanres campaign "$@"
