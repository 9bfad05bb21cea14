#!/usr/bin/env bash
# Everything that needs a GPU, in at most 9 minutes (5 without the training) and without a network:
#
#     benchmarks/on_gpu.sh [--steps a,b,c] [--dry-run] [OUTPUT]
#
# Steps, in this order: inference, precision, render, tests, samples, training; `--steps` runs only some of them. The
# machine is always described. A step that fails or exceeds its time is recorded, and the next one begins. OUTPUT (or
# $OUT, otherwise ./on-gpu) receives on_gpu.json, logs.txt, trace.json, and network.safetensors, log.jsonl and
# summary.json of the training. `--dry-run` runs tiny sizes on the CPU, in a few minutes.
#
# PICOPOSE_WHEELS (.whl) is a folder of wheels to install outside of Python's own packages, and of *.tar.xz archives of
# packages to unpack there; .gl may contain Debian packages of the OpenGL loaders. PICOPOSE_COMMIT names the commit where
# there is no checkout, PICOPOSE_PYTHON the interpreter (python3), PICOPOSE_SITE the folder of packages (/tmp/site).
set -u
export ON_GPU_STARTED="${ON_GPU_STARTED:-$(date +%s)}"
options=()
output="${OUT:-on-gpu}"
while [ $# -gt 0 ]; do
    case "$1" in
        --dry-run) options+=(--dry-run) ;;
        --steps) options+=(--steps "${2:?--steps needs names}") && shift ;;
        -*) echo "unknown option $1" >&2 && exit 2 ;;
        *) output="$1" ;;
    esac
    shift
done
mkdir -p "$output" && output="$(cd "$output" && pwd)" || exit 2
cd "$(dirname "$0")/.." || exit 2
python="${PICOPOSE_PYTHON:-python3}"
wheels="${PICOPOSE_WHEELS:-.whl}"
site="${PICOPOSE_SITE:-/tmp/site}"
setup_log="$output/logs.txt"
{
    echo "===== setup"
    libraries="$(ldconfig -p | grep -cE 'lib(EGL|GL)\.so\.1 |libOpenGL\.so\.0 ')"
    if [[ " ${options[*]-} " != *" --dry-run "* ]] && [ "$libraries" -lt 3 ] && compgen -G ".gl/*.deb" >/dev/null; then
        for file in .gl/*.deb; do timeout 20 dpkg -x "$file" / || echo "not unpacked: $file"; done
        timeout 20 ldconfig
    fi
    ldconfig -p | grep -E 'lib(EGL|GL|OpenGL|GLX_nvidia|EGL_nvidia)\.so'
    mkdir -p "$site"
    if compgen -G "$wheels/*.whl" >/dev/null; then
        install=("$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site")
        timeout 60 "${install[@]}" "$wheels"/*.whl || for file in "$wheels"/*.whl; do
            timeout 30 "${install[@]}" "$file" || echo "not installed: $file"
        done
    fi
    export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
    # An archive contains a package that is needed only where the machine's own is too old.
    if ! timeout 60 "$python" -c "import cv2; cv2.triangleRasterize"; then
        for file in "$wheels"/*.tar.xz; do
            [ -e "$file" ] || continue
            timeout 60 "$python" -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='data')" \
                "$file" "$site" || echo "not unpacked: $file"
        done
    fi
} >"$setup_log" 2>&1
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
cat "$setup_log"
vendor=/usr/local/nvidia/share/glvnd/egl_vendor.d/10_nvidia.json
if [ -z "${__EGL_VENDOR_LIBRARY_FILENAMES:-}" ] && [ -e "$vendor" ] &&
    ! compgen -G "/usr/share/glvnd/egl_vendor.d/*nvidia*.json" >/dev/null; then
    export __EGL_VENDOR_LIBRARY_FILENAMES="$vendor"
fi
export PYTHONUNBUFFERED=1
exec "$python" benchmarks/bench_gpu.py --output "$output" ${options[@]+"${options[@]}"}
