"""``vjepa show masks | features | predictions | similarity | surprise | attention | ...``."""

from __future__ import annotations

from vjepa.cli.parser import Parser, number, prints

_MODEL = ("model", "num_heads", "image_size", "num_frames")
"""A model, and what a file of weights may not say."""

HELP = """\
pictures and reports: masks, features, predictions, what surprises, attention, a whole run
"""

_MASKS_HELP = """\
draw masks over a video: what each kind of mask leaves visible

The upper row is the clip, each row below one kind of mask with what it hides in grey (Figure 9 of
the paper). Settings and recipes are those of `vjepa pretrain`.

examples:
  vjepa show masks a.mp4 --config vitl16_224 --out masks.png
  vjepa show masks a.mp4 --masking.masks.0.num_blocks 4
"""

_FEATURES_HELP = """\
colour the features of videos by their three main directions

The three main directions of all features of the shown clips become red, green and blue: what has
one colour is one thing to the model, over time and over videos. Beside the picture stands a moving
one.

example:
  vjepa show features a.mp4 b.mp4 --model runs/first --out features.png
"""

_PREDICTIONS_HELP = """\
map where the predictor errs over what was hidden from the model

One picture for each kind of mask, still and moving: the clip, what is visible, and the error over
the hidden part.
The number printed is relative: 0 is perfect, 1 no better than the clip's mean feature everywhere.

example:
  vjepa show predictions a.mp4 --model runs/first --out predictions.png
"""

_SIMILARITY_HELP = """\
map where in a clip the features are like those at one place

Does a feature follow the thing that it was taken from? The place is given across and down, as
shares of the picture that the model sees.

example:
  vjepa show similarity a.mp4 --model runs/first --at 0.5 0.4 --frame 0 --out similarity.png
"""

_SURPRISE_HELP = """\
find the moments of a video that the past did not tell

All along the video the model predicts what comes next from the frames before. The page shows the
error of that prediction as a curve, and the frames of its peaks: cuts, things that vanish, turn or
stop; or what the model never learnt.

example:
  vjepa show surprise a.mp4 --model runs/first --out surprise.html
"""

_ATTENTION_HELP = """\
map where the query of an attentive probe looks, over all frames of a clip

The clip around the middle of the video, as the probe sees it: first the mean of the attention
heads, then each head. Beside the picture stands a moving one.

example:
  vjepa show attention a.mp4 --probe probes/first --out attention.png
"""

_NEIGHBOURS_HELP = """\
find the moments of a set of videos that are most like a clip

The set is what `vjepa features` wrote, of any pooling; the clip is one window of its encoder.

example:
  vjepa features videos/ --encoder.path runs/first --pool space --out features
  vjepa show neighbours a.mp4 --features features --at 12.5 --out neighbours.png
"""

_RUN_HELP = """\
print the state of a running or finished run, and write its curves as one HTML file

example:
  vjepa show run runs/first --out report.html
"""


def add_arguments(parser: Parser) -> None:
    """Options of these commands."""
    add_command = parser.add_commands("ACTION")
    masks = add_command("masks", _MASKS_HELP)
    masks.take_config("vjepa.jobs.pretrain:PretrainConfig", recipes="pretrain")
    features = add_command("features", _FEATURES_HELP)
    features.add_path("videos", "VIDEO", "videos, images, folders of images", nargs="+")
    text = "which encoder; target is the one that the paper evaluates"
    features.add_choice("--which", ("target", "context"), text, default="target")
    predictions = add_command("predictions", _PREDICTIONS_HELP)
    for command in (masks, predictions):
        command.add_path("video", "VIDEO", "video, image, or folder of images")
        command.add_number("--sample", int, "N", "other numbers draw other masks", default=0)
    similar = add_command("similarity", _SIMILARITY_HELP)
    text = "the place, across and down, from 0 to 1 (default: 0.5 0.5)"
    similar.add_argument(
        "--at", type=number, nargs=2, default=(0.5, 0.5), metavar=("X", "Y"), help=text
    )
    similar.add_number("--frame", int, "N", "frame of the clip in which the place is", default=0)
    surprise = add_command("surprise", _SURPRISE_HELP)
    attention = add_command("attention", _ATTENTION_HELP)
    attention.add_path("--probe", "FOLDER", "what `vjepa probe train` wrote", required=True)
    attention.add_path("--encoder", "PATH", "the probe's encoder, if it lies elsewhere now")
    alike = add_command("neighbours", _NEIGHBOURS_HELP)
    alike.add_path("--features", "FOLDER", "what `vjepa features` wrote", required=True)
    alike.add_path("--model", "PATH", "the features' encoder, if it lies elsewhere now")
    text = "middle of the clip, in seconds (default: the video's middle)"
    alike.add_number("--at", float, "SECONDS", text)
    alike.add_number("--most", int, "N", "how many moments to show", default=6)
    for command in (similar, surprise, attention, alike):
        command.add_path("video", "VIDEO", "video or folder of images")
    for command in (features, predictions, similar, surprise):
        text = "run folder, checkpoint, the authors' file, or a name (demo)"
        command.add_path("--model", "PATH", text, required=True)
        command.add_sizes()
    for command in (masks, features, predictions, similar, surprise, attention, alike):
        what, suffix = ("page", "html") if command is surprise else ("picture", "png")
        out = f"{command.prog.split()[-1]}.{suffix}"
        command.add_path("--out", "FILE", f"{what} to write (default: {out})", default=out)
    for command in (features, predictions, attention):
        text = "form of the moving picture beside it"
        command.add_choice("--moving", ("webp", "gif", "mp4"), text, default="webp")
    for command, show, takes in (
        (masks, "show:show_masks", ("video", "sample")),
        (features, "show:show_features", ("videos", "which", "moving", *_MODEL)),
        (predictions, "show:show_predictions", ("video", "sample", "moving", *_MODEL)),
        (similar, "show_time:show_similarity", ("video", "at", "frame", *_MODEL)),
        (surprise, "show_time:show_surprise", ("video", *_MODEL)),
        (attention, "show_frozen:show_attention", ("video", "probe", "encoder", "moving")),
        (alike, "show_frozen:show_neighbours", ("video", "features", "at", "most", "model")),
    ):
        command.set_defaults(run=prints(f"vjepa.jobs.{show}", "out", *takes))
    run = prints("vjepa.jobs.show:show_run", "folder", "out")
    state = add_command("run", _RUN_HELP, run)
    state.add_path("folder", "RUN", "run folder")
    state.add_path("--out", "FILE", "HTML file (default: report.html in the run)")
