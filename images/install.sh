#!/bin/sh
# Runs in an image build: installs requirements.txt from its own folder, at the versions of constraints.txt.
#   install.sh new    into a new virtual environment, /opt/venv, without the packages of excludes.txt, if it exists
#   install.sh cuda   the same with what GPUs need: a C++ compiler, the CUDA toolkit as /usr/local/cuda, libibverbs
#   install.sh at ENVIRONMENT   into another new virtual environment, at the versions of requirements.txt
#   install.sh add    into the python3 that is first on PATH, keeping the versions of its packages
# Two optional build secrets, which are not stored in the image:
#   ca      PEM file of certificates to trust
#   index   lines of NAME=value for uv: UV_DEFAULT_INDEX, UV_INDEX, UV_HTTP_TIMEOUT
set -eu
cd "$(dirname "$0")"
UV_VERSION=0.13.9

if [ -f /run/secrets/index ]; then
  set -a
  . /run/secrets/index
  set +a
  if [ -n "${UV_DEFAULT_INDEX:-}" ]; then export PIP_INDEX_URL="$UV_DEFAULT_INDEX"; fi
fi
if [ -f /run/secrets/ca ]; then
  export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca
fi
export UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

installer=$(mktemp -d)
trap 'rm -rf "$installer"' EXIT
python3 -m venv "$installer"
"$installer/bin/pip" install --quiet "uv==$UV_VERSION"

install() {
  "$installer/bin/uv" pip install --quiet --prerelease=allow --compile-bytecode --requirements requirements.txt "$@"
}

new() {
  [ ! -f excludes.txt ] || set -- "$@" --excludes excludes.txt
  if [ -n "${TORCH_INDEX:-}" ]; then
    set -- "$@" --index "$TORCH_INDEX" --index-strategy unsafe-best-match
  fi
  python3 -m venv /opt/venv  # with pip, for images built on top of this one
  install --python /opt/venv/bin/python --constraints constraints.txt "$@"
}

# nvcc runs g++, Triton compiles against Python's headers, and NCCL loads libibverbs where there is InfiniBand or RoCE.
system_packages() {
  headers=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
  set --
  [ -f "$headers" ] || set -- python3-dev
  command -v g++ >/dev/null || set -- "$@" g++
  ldconfig -p | grep -q 'libibverbs\.so\.1' || set -- "$@" libibverbs1 ibverbs-providers
  if [ $# = 0 ]; then return; fi
  apt-get update --quiet=2
  apt-get install --quiet=2 --no-install-recommends "$@" >/dev/null
  rm -rf /var/lib/apt/lists/*
}

case $1 in
  at)
    python3 -m venv --without-pip "$2"
    install --python "$2/bin/python"
    ;;
  new)
    new
    ;;
  cuda)
    system_packages
    new
    ln -s "$(./cuda_toolkit.sh /opt/venv/bin/python)" /usr/local/cuda
    ;;
  add)
    # A base image may contain an environment: pods run its python3.
    python=$(command -v python3)
    "$installer/bin/uv" pip freeze --quiet --python "$python" | grep -E '^[A-Za-z0-9._-]+==' >"$installer/base.txt" || :
    install --python "$python" --break-system-packages --constraints "$installer/base.txt"
    ;;
  *)
    echo "install.sh: new, at, cuda or add, not $1" >&2
    exit 2
    ;;
esac

# Pods run as user 1000, and some libraries look up the name of the current user.
getent passwd 1000 >/dev/null || useradd --uid 1000 --user-group --home-dir /tmp --no-create-home areal
