#!/bin/sh
# Builds the operators that `python -m benchmarks operators` compares with: Kubeflow Trainer, JobSet and KubeRay. Prints
# the folder with their binaries and, below config/, their manifests. The first call takes several minutes of CPU time.
set -eu
TRAINER=v2.0.0
JOBSET=v0.8.2
KUBERAY=v1.5.0
here=$(cd "$(dirname "$0")" && pwd)
bin=${AREAL_BIN:-$here/../../.bin}
mkdir -p "$bin"
bin=$(cd "$bin" && pwd)

command -v go >/dev/null || { echo "Go is missing; install Go 1.24 or newer to build the other operators" >&2; exit 3; }
to=$bin/peer-operators-$TRAINER-$JOBSET-$KUBERAY
if [ ! -d "$to" ]; then
  work=$(mktemp -d "$bin/peer-operators-build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  # build NAME MODULE VERSION PACKAGE CONFIG: the binary as NAME, the module's folder CONFIG as config/NAME.
  build() {
    (cd "$work" && go mod download "$2@$3")
    module=$(go env GOMODCACHE)/$2@$3
    (cd "$module" && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$work/$1" "./$4")
    cp -r --no-preserve=mode "$module/$5" "$work/config/$1"
  }
  mkdir "$work/config"
  build trainer github.com/kubeflow/trainer/v2 $TRAINER cmd/trainer-controller-manager manifests/base
  build jobset sigs.k8s.io/jobset $JOBSET . config/components
  build kuberay github.com/ray-project/kuberay/ray-operator $KUBERAY . config
  mv -T "$work" "$to" 2>/dev/null || [ -d "$to" ] # another build may have been quicker
fi
echo "$to"
