#!/bin/sh
# Runs in an image build: installs requirements.txt from its own folder, at the versions of constraints.txt.
#   install.sh new   into a new virtual environment, /opt/venv, without the packages of excludes.txt, if it exists
#   install.sh add   into the python3 of the base image
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

set -- "$1" --prerelease=allow --compile-bytecode --constraints constraints.txt --requirements requirements.txt
if [ -n "${TORCH_INDEX:-}" ]; then
  set -- "$@" --index "$TORCH_INDEX" --index-strategy unsafe-best-match
fi
case $1 in
  new)
    shift
    [ ! -f excludes.txt ] || set -- "$@" --excludes excludes.txt
    python3 -m venv /opt/venv  # with pip, for images built on top of this one
    "$installer/bin/uv" pip install --quiet --python /opt/venv/bin/python "$@"
    ;;
  add)
    shift
    "$installer/bin/uv" pip install --quiet --system --break-system-packages "$@"
    ;;
  *)
    echo "install.sh: new or add, not $1" >&2
    exit 2
    ;;
esac

# Pods run as user 1000, and some libraries look up the name of the current user.
getent passwd 1000 >/dev/null || useradd --uid 1000 --user-group --home-dir /tmp --no-create-home areal
