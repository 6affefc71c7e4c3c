#!/bin/sh
# Everything that waits for a GPU: its tests, then the training step and encoding against their peers.
#
#   sh benchmarks/on_gpu.sh [FOLDER]
#
# Run it from the repository on a machine with a CUDA GPU and torch (no video decoder is needed). The
# whole output of each part goes to FOLDER (gpu-results); a part that fails does not stop the others,
# and makes the exit code 1. PART_SECONDS (300) bounds each part.
out=${1:-gpu-results}
mkdir -p "$out" || exit 2
PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
failed=0

part() {
	name=$1
	shift
	echo "== $name: $*"
	timeout "${PART_SECONDS:-300}" "$@" >"$out/$name.log" 2>&1
	code=$?
	tail -n 4 "$out/$name.log"
	if [ "$code" -ne 0 ]; then
		echo "FAILED with code $code; all of it: $out/$name.log"
		failed=1
	fi
}

# Only the files with GPU tests: others need a video decoder to be imported.
# shellcheck disable=SC2046
part tests python -m pytest -q -m gpu -p no:cacheprovider $(grep -rl --include='*.py' 'mark\.gpu' tests)
part step_vitl16_224 python benchmarks/bench_step.py --gpu --case vitl16:24:224
part step_vith16_224 python benchmarks/bench_step.py --gpu --case vith16:24:224
part step_vith16_384 python benchmarks/bench_step.py --gpu --case vith16:10:384
# What is said of memory before training, beside the peak.
for case in "vits16 64 false" "vitb16 32 false" "vitl16 24 false" "vitl16 24 true"; do
	# shellcheck disable=SC2086
	set -- $case
	part "memory_$1_$3" python -m vjepa bench step --model "$1" --batch_size "$2" \
		--training.activation_checkpointing "$3" --training.precision bfloat16
done
part profile_vitl16_224 python benchmarks/profile_step.py --gpu --case vitl16:24:224
# Fine-tuning: not yet measured.
part finetune_vitl16 python benchmarks/bench_finetune.py --gpu --compile --model vitl16 --clips 32
part finetune_vith16 python benchmarks/bench_finetune.py --gpu --compile --model vith16 --clips 16
part precision python benchmarks/curve_precision.py
for model in vitl16 vith16; do
	part "encode_$model" python -m vjepa bench encode --model "$model" --precision bfloat16 --compile true
	part "encode_peer_$model" python benchmarks/bench_encode_peers.py --model "$model" --batch 8 --precision bfloat16 --compile
done
part detection_vitl16 python benchmarks/bench_detection.py --gpu --model vitl16
exit "$failed"
