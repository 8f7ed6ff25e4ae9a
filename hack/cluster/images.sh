#!/bin/sh
# Builds the three images, pushes them to a registry and prints their common tag, a digest of their contents. Also pushes
# `latest` (`latest-cpu`). Takes seconds if nothing has changed. A build needs no GPU, whatever DEVICE is.
#   DEVICE       cpu, or cuda for the images with the CUDA toolkit (cpu)
#   REGISTRY     registry to push to; "" does not push        (localhost:5000)
#   BASE_IMAGE   a Debian or Ubuntu image with python3 ≥ 3.11 (python:3.11-slim-bookworm; if Docker Hub is unreachable,
#                a Debian root built by mmdebstrap)
#   SGLANG_IMAGE base of the cuda images of trainer and server, such as lmsysorg/sglang:v0.5.23 (BASE_IMAGE)
#   TORCH_INDEX  an index of CPU builds of torch; without it torch comes from PyPI
# Builds use this machine's pip index settings, certificates and proxies, which leave no trace in the images.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
registry=${REGISTRY-localhost:5000}
device=${DEVICE:-cpu}
stock_base=python:3.11-slim-bookworm
certificates=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}

log() { echo "images: $*" >&2; }
unavailable() { log "$*"; exit 3; } # this machine lacks something
failed() { log "$*"; exit 1; }
image_exists() { docker image inspect "$1" >/dev/null 2>&1; }

# Finds a client that builds with BuildKit: one with buildx, or one older than 23, which has it built in.
find_builder() {
  for client in docker /usr/bin/docker; do
    major=$($client version --format '{{.Client.Version}}' 2>/dev/null | cut -d. -f1)
    if [ -n "$major" ] && { [ "$major" -lt 23 ] || $client buildx version >/dev/null 2>&1; }; then
      echo "$client"
      return
    fi
  done
  unavailable "the docker client lacks buildx: install docker-buildx-plugin (Docker's packages) or docker-buildx (Debian's)"
}

# find_base OWN [PACKAGES]: a Debian with Python; OWN, with PACKAGES, is built if none can be pulled.
find_base() {
  own_base=$1
  if [ -n "${BASE_IMAGE:-}" ]; then
    echo "$BASE_IMAGE"
  elif image_exists $stock_base || { ! image_exists "$own_base" && timeout 300 docker pull -q $stock_base >/dev/null 2>&1; }; then
    echo $stock_base
  else
    image_exists "$own_base" || make_base "$@"
    echo "$own_base"
  fi
}

# make_base OWN [PACKAGES]: Debian with Python, without traces of this machine: resolver, host name, package mirror.
make_base() {
  if ! command -v mmdebstrap >/dev/null; then
    { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; } ||
      unavailable "$stock_base cannot be pulled; set BASE_IMAGE, or run this as root on Debian to build one"
    log "installing mmdebstrap"
    { apt-get update -qq && apt-get install -qq --no-install-recommends mmdebstrap; } >/dev/null 2>&1 ||
      unavailable "$stock_base cannot be pulled, and apt-get cannot install mmdebstrap"
  fi
  log "$stock_base cannot be pulled: building $own_base"
  work=$(mktemp -d)
  # shellcheck disable=SC2016  # mmdebstrap's shell sets $1, the new root
  mmdebstrap --quiet --variant=minbase --include="python3,python3-venv,ca-certificates${2:+,$2}" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -f "$1/etc/resolv.conf" "$1/etc/hostname" "$1/etc/apt/sources.list" "$1/etc/apt/sources.list.d/"*' \
    bookworm "$work/root.tar" >&2
  docker import --change 'CMD ["bash"]' "$work/root.tar" "$own_base" >/dev/null
  rm -r "$work"
}

# Arguments of `docker build` that pass this machine's network settings to a build.
machine_arguments() {
  [ ! -f "$certificates" ] || printf '%s\n' --secret "id=ca,src=$certificates"
  : >"$settings"
  for name in UV_DEFAULT_INDEX UV_INDEX UV_HTTP_TIMEOUT; do
    eval "value=\${$name:-}"
    [ "$name$value" != UV_DEFAULT_INDEX ] || value=${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2>/dev/null || :)}
    [ -z "$value" ] || printf "%s='%s'\n" "$name" "$value" >>"$settings"
  done
  [ ! -s "$settings" ] || printf '%s\n' --secret "id=index,src=$settings"
  for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
    eval "[ -z \"\${$name:-}\" ]" || printf '%s\n' --build-arg "$name"
  done
}

# build NAME TAG FILE BASE [ARGUMENT…]: prints the image's ID, a digest of its contents.
build() {
  name=$1 tag=$2 file=$3 base=$4
  shift 4
  started=$(date +%s)
  while read -r argument; do set -- "$@" "$argument"; done <"$arguments"
  if ! DOCKER_BUILDKIT=1 $builder build --iidfile "$folder/identity" --file "$root/$file" --tag "$name:$tag" \
    --build-arg "BASE_IMAGE=$base" --build-arg "TORCH_INDEX=${TORCH_INDEX:-}" --build-arg "SGLANG_IMAGE=${SGLANG_IMAGE:-}" \
    "$@" "$root" >"$folder/log" 2>&1; then
    tail -n 25 "$folder/log" >&2
    failed "$file could not be built"
  fi
  cat "$folder/identity"
  log "$name:$tag built in $(($(date +%s) - started)) s"
}

# publish NAME TAG: pushes this tag and latest; removes tags of earlier contents.
publish() {
  for tag in "$2" "latest${2#"$digest"}"; do
    docker tag "$1:latest${2#"$digest"}" "$registry/$1:$tag"
    docker push --quiet "$registry/$1:$tag" >/dev/null || failed "cannot push to $registry"
  done
  docker image ls --format '{{.Repository}}:{{.Tag}}' "$registry/$1" | while read -r old; do
    case $old in *:"$2" | *:latest | *:latest-cpu) ;; *) docker image rm "$old" >/dev/null ;; esac
  done
  docker image prune --force --filter "label=org.opencontainers.image.title=$1" >/dev/null
}

# A build takes minutes: check for the registry first.
registry_answers() {
  case $registry in
    localhost:*) curl --silent --fail --output /dev/null "http://$registry/v2/" ;;
  esac
}

case $device in
  cpu | cuda) ;;
  *) log "DEVICE is $device; set cpu or cuda"; exit 2 ;;
esac
"$here/docker.sh"
registry_answers || unavailable "no registry responds on $registry: make cluster starts one; REGISTRY= builds without pushing"
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
settings=$folder/settings arguments=$folder/arguments
builder=$(find_builder)
machine_arguments >"$arguments"
plain_base=$(find_base areal-base:bookworm)
case $device in
  cpu) base=$plain_base suffix=-cpu target=cpu ;;
  cuda) base=$(find_base areal-base:bookworm-cuda g++,python3-dev,libibverbs1,ibverbs-providers) suffix='' target=gpu ;;
esac
operator=$(build areal-operator latest operator/Dockerfile "$plain_base")
server=$(build areal-sglang "latest$suffix" Dockerfile.sglang "$base" --target $target)
trainer=$(build areal-trainer "latest$suffix" Dockerfile.trainer "$base" --target $target)
digest=$(printf '%s\n' "$operator" "$server" "$trainer" | sha256sum | cut -c1-12)
if [ -n "$registry" ]; then
  publish areal-operator "$digest"
  publish areal-sglang "$digest$suffix"
  publish areal-trainer "$digest$suffix"
fi
echo "$digest"
