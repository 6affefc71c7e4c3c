"""The page of `vjepa app`: its tabs, and what is called when something on it is clicked.

Gradio looks at the annotations of handlers, so they are objects here and not text.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError
from vjepa.jobs import app_looks as looks
from vjepa.jobs.app import MOST_MEGABYTES, MOST_SECONDS, Sessions
from vjepa.jobs.app_looks import TRAINED, UNTRAINED, Session, View, Watch
from vjepa.paths import as_path

CSS = """
.gradio-container {max-width: 1200px !important}
.said {font-size: 0.92em; line-height: 1.5; overflow-wrap: anywhere}
.models label span {overflow-wrap: anywhere; min-width: 0}
.models label {max-width: 100%}
.said .error {color: #c0362c}
.dark .said .error {color: #ff8f84}
.place img {cursor: crosshair}
.result {max-width: 820px}
.result .output-class {font-size: 1.4em; overflow-wrap: anywhere}
.result:has(.empty) {display: none}
.result [data-testid=block-label], .place [data-testid=block-label] {position: static}
"""

_INTRODUCTION = f"""
# Look inside a model

Give a video (of at most {MOST_MEGABYTES} MB and {MOST_SECONDS:.0f} s), tick models, and look: how
their features colour it, what is alike in it, what they predict of a hidden part, and what
surprises them. Everything stays on this machine. `{TRAINED}`
are the small weights that come with vjepa; `{UNTRAINED}` is the same model before it has learnt
anything: what it shows, too, needs no learning.
"""
_FEATURES = """
Each model's features as colours over the clip: one colour is one thing to the model, over time.
Colours are those of one model; between two models they mean nothing.
"""
_SIMILAR = """
Click a place in the frame. Red: the features there are the same as at the place (cosine, the clip's
mean taken off); yellow: half as alike; blue-green: no more alike than any. A square is one token.
"""
_HIDE = """
Models see what is not hidden, and predict the features of the rest. Error: from blue-green (right)
over yellow to red (no better than the clip's mean feature). Click two corners of a box to hide it
in all frames.
"""
_SAMPLES = """
**Decoded samples.** A decoder (`vjepa decode train`) draws pixels from its own model's predictions
of the hidden part, and sees nothing else; what the samples share, the prediction told.
"""
_SURPRISE = """
All along the video a model predicts what comes next from what it has just seen. Where the curve is
high, something came that the past did not tell. Above its dotted line a value is unusual for this
video. Click the curve to see that moment.
"""
_PROBE = """
The classes that a probe (`vjepa probe train`) holds most probable for the whole video.
"""
_SEARCH = """
The moments of indexed videos (`vjepa search index`) that are most alike to this video, or to a part
of it. 1: the same; 0: as unlike as two moments are on average.
"""


def _said(words: str) -> str:
    """Lines for the page; what went wrong stands out."""
    lines = []
    for line in words.splitlines():
        bad = ' class="error"' if "error: " in line else ""
        lines.append(f"<div{bad}>{html.escape(line)}</div>")
    return f'<div class="said" role="status">{"".join(lines)}</div>'


def _path(text: str | None) -> Path | None:
    return as_path(text.strip()) if text and text.strip() else None


def _needed(text: str | None, what: str) -> Path:
    if (path := _path(text)) is None:
        raise UserError(f"name {what}")
    return path


def build_page(sessions: Sessions, models: Sequence[str], places: Mapping[str, Path | None]) -> Any:
    """The page, as gradio Blocks. `models` are offered, `places` stand in its fields."""
    import gradio as gr

    with gr.Blocks(title="vjepa: look inside a model", analytics_enabled=False) as page:
        made = _Page(gr, sessions)
        video = made.top(models)
        with gr.Tab("Features"):
            first = made.features_tab()
        with gr.Tab("What is alike"):
            made.similar_tab()
        with gr.Tab("Hide and predict"):
            made.hide_tab(places.get("decoder"))
        with gr.Tab("Surprise"):
            made.surprise_tab()
        with gr.Tab("Classes"):
            made.classes_tab(places.get("probe"))
        with gr.Tab("Find"):
            made.search_tab(places.get("database"))
        made.take_videos(page, *video, first)

        def closed(request: gr.Request) -> None:
            sessions.end(str(request.session_hash))

        page.unload(closed)
    return page


class _Page:
    """The components that all tabs use, and a method for each tab."""

    def __init__(self, gr: Any, sessions: Sessions) -> None:
        self.gr, self.sessions = gr, sessions
        self.results: list[Any] = []

    def handler(self, work: Callable[..., View | Sequence[Any]], blanks: int) -> Callable[..., Any]:
        """A function for gradio: its tab's session and a watch first; mistakes as the last line."""
        gr = self.gr
        shown = gr.Progress()  # gradio gives a call its own where this stands as a default

        def handle(request: gr.Request, progress: Any = shown, *values: Any) -> Any:
            session = self.sessions.of(str(request.session_hash))
            watch = session.watched(lambda done, total: progress((done, total)))
            try:
                found = work(session, watch, *values)
                return _shown(found) if isinstance(found, View) else tuple(found)
            except UserError as error:
                words = str(error)
                if session.video is not None:
                    words = words.replace(session.video.path, Path(session.video.path).name)
                said = words == looks.STOPPED or "error: " in words  # of each model
                words = words if said else f"error: {words}"
                return *[None] * blanks, _said(words)

        return handle

    def outputs(self, film: str, still: str = "At four moments") -> list[Any]:
        """Where a tab shows what it has found: a film, a picture, and words above them."""
        words = self.words()
        plain = {"interactive": False, "buttons": [], "elem_classes": ["result"]}
        self.results.append(self.gr.Video(label=film, autoplay=True, loop=True, **plain))
        return [self.results[-1], self.picture(still), words]

    def words(self) -> Any:
        """Where a tab says what it has found, or what is wrong."""
        self.results.append(self.gr.HTML())
        return self.results[-1]

    def picture(self, label: str, kind: str = "result") -> Any:
        """A picture that is shown: a `result`, or a `place` to be clicked at."""
        plain = {"type": "filepath", "interactive": False, "elem_classes": kind.split()}
        buttons = [] if "place" in kind else ["fullscreen"]
        made = self.gr.Image(label=label, buttons=buttons, **plain)
        self.results += [made] if "result" in kind else []
        return made

    def on(
        self, event: Any, work: Callable[..., Any], inputs: Any, outputs: list[Any], name: str
    ) -> Any:
        """Call `work` on an event, under a name for programs; progress is shown on the words."""
        fn = self.handler(work, len(outputs) - 1)
        return event(fn, inputs, outputs, api_name=name, show_progress_on=outputs[-1])

    def sliders(self, *named: tuple[str, float]) -> list[Any]:
        """Sliders from 0 to 1, with their names and where they stand."""
        return [self.gr.Slider(0, 1, value, label=name) for name, value in named]

    def top(self, models: Sequence[str]) -> tuple[Any, Any]:
        """Above the tabs: the video, which is returned, models, the moment, and the stop."""
        gr, names = self.gr, list(self.sessions.examples)
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            with gr.Column(min_width=280):
                example = gr.Dropdown(names, value=names[0], label="Example video")
                upload = gr.UploadButton("Upload a video", file_types=["video", "image"])
            with gr.Column(min_width=280):
                plain = {"label": "Models", "elem_classes": ["models"]}
                self.ticked = gr.CheckboxGroup(list(models), value=list(models)[:2], **plain)
                other = gr.Textbox(
                    label="Another model",
                    info="What its file may not say can stand behind the path: num_heads=16 "
                    "image_size=256 num_frames=16",
                    placeholder="a path; press Enter",
                    max_lines=1,
                )
            with gr.Column(min_width=280):
                self.start = gr.Slider(0, 1, 0, step=0.01, label="Clips begin at second")
                stop = gr.Button("Stop what is running")
        self.said = gr.HTML()

        def add(s: Session, w: Watch, path: str, ticked: list[str]) -> tuple[Any, str, str]:
            name = str(_needed(path, "a model: a run, a checkpoint or a file"))
            w(0, 1)
            opened = looks.open_for_page(name)
            s.models.append(name)
            choices, value = dict.fromkeys([*models, *s.models]), dict.fromkeys([*ticked, name])
            words = f"{name}: {looks.about(opened.encoder.config)}"
            words += f"; {opened.why}" if opened.why else ""
            return gr.CheckboxGroup(list(choices), value=list(value)), "", _said(words)

        def halt(s: Session, _: Watch) -> tuple[str]:
            s.stops += 1
            return (_said("stopping what is running"),)

        self.on(other.submit, add, [other, self.ticked], [self.ticked, other, self.said], "model")
        free = {"queue": False, "show_progress": "hidden"}
        stop.click(self.handler(halt, 0), None, [self.said], api_name="stop", **free)
        return example, upload

    def take_videos(self, page: Any, example: Any, upload: Any, first: dict[str, Any]) -> None:
        """What happens with another video: all results go, and the `first` ones are made of it."""
        nothing = ["" if isinstance(one, self.gr.HTML) else None for one in self.results]

        def taken(name: str, info: VideoInfo, chosen: str | None) -> tuple[Any, ...]:
            still, end = info.kind == "image", round(max(0.1, info.duration_seconds), 2)
            words = "a still picture" if still else f"{end:.2f} s, {info.num_frames} frames"
            words = f"{name}: {words} of {info.width} x {info.height} px"
            moved = self.gr.Slider(0, end, 0, interactive=not still)
            return chosen, moved, *nothing, _said(words)

        def choose(s: Session, _: Watch, name: str) -> tuple[Any, ...]:
            return taken(name, self.sessions.choose(s, name), name)

        def accept(s: Session, w: Watch, path: str | None) -> tuple[Any, ...]:
            if not path:
                raise UserError("no file was given; upload one")
            return taken(Path(path).name, self.sessions.accept(s, Path(path), w), None)

        outputs = [example, self.start, *self.results, self.said]
        opened = self.handler(choose, len(outputs) - 1)
        begun = (
            page.load(opened, [example], outputs, api_visibility="private"),
            self.on(example.input, choose, [example], outputs, "example"),
            self.on(upload.upload, accept, [upload], outputs, "upload"),
        )
        for event in begun:
            event.then(**first, api_visibility="private")

    def show_frame(self, work: Callable[..., Path], inputs: list[Any], at: Any, words: Any) -> None:
        """Draw the frame that is clicked at anew, whenever what is to be seen in it changes."""
        changes = [one.change for one in (self.said, *inputs)]
        fn = self.handler(lambda *values: (str(work(*values)), self.gr.skip()), 1)
        how = {"api_visibility": "private", "show_progress": "hidden"}
        self.gr.on(changes, fn, inputs, [at, words], trigger_mode="always_last", **how)

    def features_tab(self) -> dict[str, Any]:
        """Features as colours; returned is what draws them, for when the page is opened."""
        self.gr.Markdown(_FEATURES)
        with self.gr.Row():
            (strength,) = self.sliders(("Strength of the colours", 0.6))
            button = self.gr.Button("Colour it", variant="primary")
        outputs, inputs = self.outputs("Features as colours"), [self.ticked, self.start, strength]
        event = {"fn": self.handler(looks.features, 2), "inputs": inputs, "outputs": outputs}
        event["show_progress_on"] = outputs[-1]
        button.click(**event, api_name="features")
        return event

    def similar_tab(self) -> None:
        """A place that is clicked at, and what is alike to it."""
        gr = self.gr
        gr.Markdown(_SIMILAR)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                frame = self.picture("Click a place", "place")
                named = (("Frame: how far into the clip", 0.0), ("Across", 0.5), ("Down", 0.5))
                share, *place = self.sliders(*named)
                button = gr.Button("What is alike?", variant="primary")
            with gr.Column(scale=2, min_width=280):
                outputs = self.outputs("The place, and what is alike to it")

        def draw(s: Session, _: Watch, names: Any, start: float, share: float, *at: Any) -> Path:
            return looks.frame_picture(s, names, start, share, at=at)

        def clicked(picked: gr.SelectData) -> tuple[float, ...]:
            return tuple(round(pixel / looks.SIDE, 3) for pixel in picked.index)

        inputs = [self.ticked, self.start, share, *place]
        self.on(button.click, looks.similar, inputs, outputs, "similar")
        click = frame.select(clicked, None, place, api_visibility="private")
        self.on(click.then, looks.similar, inputs, outputs, "similar_clicked")
        self.show_frame(draw, inputs, frame, outputs[-1])

    def hide_tab(self, decoder: Path | None) -> None:
        """What is hidden, how wrong predictions of it are, and what a decoder draws there."""
        gr = self.gr
        gr.Markdown(_HIDE)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                kinds = list(get_args(looks.Hide))
                hide = gr.Radio(kinds, value=kinds[0], label="Hide")
                number = gr.Slider(0, 99, 0, step=1, label="Another mask of its training")
                frame = self.picture("Click two corners of a box", "place")
                edges = (("Left", 0.3), ("Top", 0.3), ("Right", 0.7), ("Bottom", 0.7))
                with gr.Accordion("Edges of the box", open=False):
                    box = self.sliders(*edges)
                button = gr.Button("Predict it", variant="primary")
            with gr.Column(scale=2, min_width=280):
                outputs = self.outputs("Shown, and the error of the prediction")
        hidden = [hide, number, *box]

        def draw(s: Session, _: Watch, names: Any, start: float, kind: str, *how: Any) -> Path:
            box = how[1:] if kind == kinds[2] else None
            return looks.frame_picture(s, names, start, 0, box=box)

        def corner(request: gr.Request, picked: gr.SelectData) -> tuple[Any, ...]:
            session = self.sessions.of(str(request.session_hash))
            at = tuple(round(pixel / looks.SIDE, 3) for pixel in picked.index)
            last, session.corner = session.corner, None if session.corner else at
            if last is None:
                return (*[gr.skip()] * 5, _said("now click the opposite corner"))
            return kinds[2], *map(min, last, at), *map(max, last, at), _said("a box is hidden")

        inputs = [self.ticked, self.start, *hidden]
        self.on(button.click, looks.predictions, inputs, outputs, "hide")
        frame.select(corner, None, [hide, *box, outputs[-1]], api_visibility="private")
        self.show_frame(draw, inputs, frame, outputs[-1])
        gr.Markdown(_SAMPLES)
        with gr.Row():
            paths = self.path_fields("Decoder: what vjepa decode train wrote", decoder, "model")
            count = gr.Slider(1, 6, 3, step=1, label="Samples")
            button = gr.Button("Draw samples", variant="primary")
        outputs = self.outputs("Samples", "Samples, their mean, and where they differ")

        def draws(s: Session, w: Watch, start: float, *how: Any) -> View:
            *hidden, decoder, model, count = how
            folder = _needed(decoder, "a decoder: the folder that vjepa decode train wrote")
            return looks.samples(s, w, start, looks.Hidden(*hidden), folder, _path(model), count)

        self.on(button.click, draws, [self.start, *hidden, *paths, count], outputs, "samples")

    def surprise_tab(self) -> None:
        """The curve over the video, and the moment that is clicked at."""
        gr = self.gr
        gr.Markdown(_SURPRISE)
        button = gr.Button("Draw the curve", variant="primary")
        words = self.words()
        curve = self.picture("Surprise over the video: click a moment", "place result")
        moment = gr.Slider(0, MOST_SECONDS, 0, step=0.01, label="Moment, in seconds")
        still = self.picture("Before, what came, and where the prediction was wrong")
        outputs = [curve, still, words]

        def work(s: Session, w: Watch, names: Any) -> Any:
            view, highest = looks.surprises(s, w, names)
            end = s.current.duration_seconds
            return (*_shown(view)[:2], gr.Slider(0, end, highest), _said(view.words))

        def clicked(request: gr.Request, picked: gr.SelectData) -> tuple[Any, float]:
            session = self.sessions.of(str(request.session_hash))
            left, right = session.edges
            end = session.current.duration_seconds
            at = left + picked.index[0] / looks.CURVE_PIXELS * (right - left)
            at = round(min(max(at, 0.0), end), 2)
            return at, at

        def see(s: Session, _: Watch, at: float) -> View:
            return looks.moment_of_surprise(s, at)

        self.on(button.click, work, [self.ticked], [curve, still, moment, words], "surprise")
        self.on(moment.release, see, [moment], outputs, "moment")
        click = curve.select(clicked, None, [moment, self.start], api_visibility="private")
        self.on(click.then, see, [moment], outputs, "moment_clicked")

    def classes_tab(self, probe: Path | None) -> None:
        """The classes of a probe."""
        gr = self.gr
        gr.Markdown(_PROBE)
        with gr.Row():
            paths = self.path_fields("Probe: what vjepa probe train wrote", probe)
            button = gr.Button("Classify", variant="primary")
        words = self.words()
        self.results.append(gr.Label(label="Most probable classes", elem_classes=["result"]))
        outputs = [self.results[-1], words]

        def work(s: Session, _: Watch, probe: str, encoder: str) -> tuple[Any, str]:
            folder = _needed(probe, "a probe: the folder that vjepa probe train wrote")
            found, words = looks.classes(s, folder, _path(encoder))
            return found, _said(words)

        self.on(button.click, work, paths, outputs, "classes")

    def search_tab(self, database: Path | None) -> None:
        """Moments of a database."""
        gr = self.gr
        gr.Markdown(_SEARCH)
        with gr.Row():
            paths = self.path_fields("Database: what vjepa search index wrote", database)
        with gr.Row():
            labels = ("From second", "To second (0: the end)")  # a browser makes 0 of an empty one
            part = [gr.Number(0, label=label, minimum=0) for label in labels]
            count = gr.Slider(1, 12, 6, step=1, label="Moments")
            button = gr.Button("Find moments", variant="primary")
        words = self.words()
        outputs = [self.picture("Asked for, and found"), words]

        def work(
            s: Session, _: Watch, database: str, encoder: str, start: Any, end: Any, count: int
        ) -> Any:
            folder = _needed(database, "a database: the folder that vjepa search index wrote")
            view = looks.moments(s, folder, _path(encoder), (start or None, end or None), count)
            return _shown(view)[1:]

        self.on(button.click, work, [*paths, *part, count], outputs, "search")

    def path_fields(self, label: str, value: Path | None, of: str = "encoder") -> list[Any]:
        """Fields for a path on this machine, and for that of the model which belongs to it."""
        named = (label, value), (f"Its {of}, if it lies elsewhere now", "")
        return [self.gr.Textbox(str(path or ""), label=label, max_lines=1) for label, path in named]


def _shown(view: View) -> tuple[str | None, str | None, str]:
    film, still = (None if path is None else str(path) for path in (view.film, view.still))
    return film, still, _said(view.words)
