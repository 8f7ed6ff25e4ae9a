#!/bin/sh
# Completes the CUDA toolkit that pip installs, so that nvcc's output can be linked, and prints its folder: wheels lack
# lib64, the unversioned name of the runtime, and a libcuda to link against (the driver brings the real one).
#   cuda_toolkit.sh PYTHON     the interpreter of the environment, with cuda-toolkit[nvcc] installed
set -eu
toolkit=$("$1" -c 'import sysconfig; print(sysconfig.get_path("purelib") + "/nvidia/cu13")')
if [ ! -x "$toolkit/bin/nvcc" ]; then
  echo "cuda_toolkit.sh: no nvcc in $toolkit; install cuda-toolkit[nvcc,cccl] as pinned in constraints.txt" >&2
  exit 1
fi
if ! command -v g++ >/dev/null; then
  echo "cuda_toolkit.sh: nvcc needs g++, which is not installed; on Debian, apt-get install g++" >&2
  exit 1
fi
ln -sfn lib "$toolkit/lib64"
ln -sf libcudart.so.13 "$toolkit/lib/libcudart.so"
mkdir -p "$toolkit/lib/stubs"
g++ -shared -nostdlib -Wl,-soname,libcuda.so.1 -x c /dev/null -o "$toolkit/lib/stubs/libcuda.so"
echo "$toolkit"
