#!/bin/sh
# Builds the three images for machines without a GPU, pushes them to a registry and prints the one tag that all three
# got: a digest of their contents. `latest` (`latest-cpu`) is pushed too. A call without a change costs seconds.
#   REGISTRY     where to push; "" does not push              (localhost:5000)
#   BASE_IMAGE   a Debian or Ubuntu image with python3 ≥ 3.11 (python:3.11-slim-bookworm; without Docker Hub a
#                Debian root is made here by mmdebstrap)
#   TORCH_INDEX  an index of CPU builds of torch; without it torch is PyPI's
# pip's index settings, certificates and proxies of this machine serve the builds too, and leave no trace in the images.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
registry=${REGISTRY-localhost:5000}
stock_base=python:3.11-slim-bookworm
own_base=areal-base:bookworm
certificates=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}

say() { echo "images: $*" >&2; }
missing() { say "$*"; exit 3; } # this machine lacks something
failed() { say "$*"; exit 1; }
there() { docker image inspect "$1" >/dev/null 2>&1; }

# A client that builds with BuildKit: one with buildx, or one older than 23, which has it built in.
find_builder() {
  for client in docker /usr/bin/docker; do
    major=$($client version --format '{{.Client.Version}}' 2>/dev/null | cut -d. -f1)
    if [ -n "$major" ] && { [ "$major" -lt 23 ] || $client buildx version >/dev/null 2>&1; }; then
      echo "$client"
      return
    fi
  done
  missing "the docker client lacks buildx: install docker-buildx-plugin (Docker's packages) or docker-buildx (Debian's)"
}

find_base() {
  if [ -n "${BASE_IMAGE:-}" ]; then
    echo "$BASE_IMAGE"
  elif there $stock_base || { ! there $own_base && timeout 300 docker pull -q $stock_base >/dev/null 2>&1; }; then
    echo $stock_base
  else
    there $own_base || make_base
    echo $own_base
  fi
}

# Debian with Python, without this machine's names: its resolver, its host name, its package mirror.
make_base() {
  if ! command -v mmdebstrap >/dev/null; then
    { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; } ||
      missing "$stock_base cannot be pulled; set BASE_IMAGE, or call this as root on Debian, where one can be made"
    say "installing mmdebstrap"
    { apt-get update -qq && apt-get install -qq --no-install-recommends mmdebstrap; } >/dev/null 2>&1 ||
      missing "$stock_base cannot be pulled, and apt-get cannot install mmdebstrap"
  fi
  say "$stock_base cannot be pulled: making $own_base"
  work=$(mktemp -d)
  # shellcheck disable=SC2016  # mmdebstrap's shell sets $1, the root that it makes
  mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -f "$1/etc/resolv.conf" "$1/etc/hostname" "$1/etc/apt/sources.list" "$1/etc/apt/sources.list.d/"*' \
    bookworm "$work/root.tar" >&2
  docker import --change 'CMD ["bash"]' "$work/root.tar" $own_base >/dev/null
  rm -r "$work"
}

# What a build may use of this machine, as arguments of `docker build`.
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

# build NAME TAG FILE [ARGUMENT…]: prints the image's identity, a digest of its contents.
build() {
  name=$1 tag=$2 file=$3
  shift 3
  started=$(date +%s)
  while read -r argument; do set -- "$@" "$argument"; done <"$arguments"
  if ! DOCKER_BUILDKIT=1 $builder build --iidfile "$folder/identity" --file "$root/$file" --tag "$name:$tag" \
    --build-arg "BASE_IMAGE=$base" --build-arg "TORCH_INDEX=${TORCH_INDEX:-}" "$@" "$root" >"$folder/log" 2>&1; then
    tail -n 25 "$folder/log" >&2
    failed "$file could not be built"
  fi
  cat "$folder/identity"
  say "$name:$tag built in $(($(date +%s) - started)) s"
}

# publish NAME TAG: under this tag and as latest; tags of earlier contents go.
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

# A build takes minutes: a registry that is not there is told before.
registry_answers() {
  case $registry in
    localhost:*) curl --silent --fail --output /dev/null "http://$registry/v2/" ;;
  esac
}

"$here/docker.sh"
registry_answers || missing "no registry answers on $registry: make cluster starts one; REGISTRY= builds without pushing"
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
settings=$folder/settings arguments=$folder/arguments
builder=$(find_builder)
base=$(find_base)
machine_arguments >"$arguments"
operator=$(build areal-operator latest operator/Dockerfile)
server=$(build areal-sglang latest-cpu Dockerfile.sglang --target cpu)
trainer=$(build areal-trainer latest-cpu Dockerfile.trainer --target cpu)
digest=$(printf '%s\n' "$operator" "$server" "$trainer" | sha256sum | cut -c1-12)
if [ -n "$registry" ]; then
  publish areal-operator "$digest"
  publish areal-sglang "$digest-cpu"
  publish areal-trainer "$digest-cpu"
fi
echo "$digest"
