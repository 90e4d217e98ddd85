"""Controls above a figure: move one, and the figure answers.

Figures come from `plots`; the alternative text of what is drawn now is the image's.
"""

import base64
import html
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping

import ipywidgets
import torch
from matplotlib.figure import Figure

from qlora_lab import plots
from qlora_lab.memory.closed_form import ModelShape, predict_training
from qlora_lab.memory.fit import fit_to_gpu, usual_reserve
from qlora_lab.memory.per_gpu import predict_per_process
from qlora_lab.memory.plan import METHODS, PRESETS, find_config
from qlora_lab.quantization.datatypes import DATATYPES, get_datatype
from qlora_lab.quantization.tensor import quantize
from qlora_lab.widgets.display import to_try


class Explorer(ipywidgets.VBox):
    """A question, controls, and a figure that is drawn again when one of them changes.

    Two buttons stand under the controls. "Keep this state to compare" leaves the figure as it is now beside the one
    that goes on changing (under it where the page is narrow); "Reset" goes back to the first state, with nothing kept.

    Args:
        controls: name -> widget with a `value`; `draw` is called with these names.
        draw: returns the figure.
        question: what to try: a question that moving the controls answers.

    Attributes:
        figure: as drawn now. kept: values of the controls when a state was kept; None while none is.
    """

    def __init__(self, controls: Mapping[str, ipywidgets.Widget], draw: Callable[..., Figure], question: str = ""):
        self.controls, self._draw = dict(controls), draw
        self._first, self._waiting = self._values(), False
        self.figure = self.kept = None
        self.question = ipywidgets.HTML(to_try(question) if question else "")
        self.picture, self.kept_picture = ipywidgets.HTML(), ipywidgets.HTML()
        self.keep_button = ipywidgets.Button(description="Keep this state to compare", icon="thumb-tack")
        self.reset_button = ipywidgets.Button(description="Reset", icon="undo")
        self.keep_button.layout.width = "auto"
        self.keep_button.on_click(self.keep)
        self.reset_button.on_click(self.reset)
        buttons = ipywidgets.HBox([self.keep_button, self.reset_button])
        buttons.add_class("explorer-buttons")
        pictures = ipywidgets.Box([self.picture, self.kept_picture])
        pictures.add_class("explorer-pictures")
        pictures.layout.display, pictures.layout.flex_flow = "flex", "row wrap"
        for control in self.controls.values():
            control.style.description_width = "9em"
            if isinstance(control, ipywidgets.ToggleButtons):
                control.style.button_width = "auto"
                control.layout.display, control.layout.flex_flow = "flex", "row nowrap"
            control.observe(self._update, "value")
        super().__init__([self.question, *self.controls.values(), buttons, pictures])
        self._update()
        width = f"{plots.displayed_width(self.figure)}px"
        for picture in (self.picture, self.kept_picture):  # side by side where there is room for most of both
            picture.layout.flex, picture.layout.max_width = "1 1 26em", width
        for part in (self.question, *self.controls.values(), buttons):  # as wide as the figure, or as a narrow page
            part.layout.width, part.layout.max_width = "98%", width

    def keep(self, _button=None) -> None:
        """Leave the figure as it is now for comparison; it takes the place of one that was kept before."""
        self.kept, self._kept_image = self._values(), self._image
        self._update()

    def reset(self, _button=None) -> None:
        """Back to the first state, with nothing kept; the figure is drawn once, however many controls move."""
        self.kept, self._waiting = None, True
        try:
            for name, control in self.controls.items():
                control.value = self._first[name]
        finally:
            self._waiting = False
        self._update()

    def fallback(self) -> tuple[dict, dict]:
        """The figure as it is now."""
        words = self.figure.alt_text
        data = {"image/png": self._png, "text/plain": f"Figure: {words}"}
        return data, {"image/png": {"alt": words, "width": plots.displayed_width(self.figure)}}

    def _values(self) -> dict:
        return {name: control.value for name, control in self.controls.items()}

    def _update(self, change=None) -> None:
        if self._waiting:
            return
        values = self._values()
        if change is not None or self.figure is None or self.kept is None:
            self.figure = self._draw(**values)
            self._png = plots.png(self.figure)
            self._image = _image(self._png, self.figure)
        if self.kept is None:
            self.picture.value, self.kept_picture.value = self._image, ""
            return
        others = {name for name in values if values[name] != self.kept[name]}
        self.picture.value = _caption("Now", self._told(values, others)) + self._image
        self.kept_picture.value = _caption("Kept", self._told(self.kept, others)) + self._kept_image

    def _told(self, values: Mapping, others: set[str]) -> str:
        """The values of the controls that differ between the two states, in words."""
        if not others:
            return "the same state; now move a control"
        parts = [f"{self.controls[name].description} {values[name]}" for name in self.controls if name in others]
        return html.escape(", ".join(parts))


def _caption(name: str, words: str) -> str:
    return f'<div style="line-height: 1.5"><b>{name}</b>: {words}</div>'


def _image(png: bytes, figure: Figure) -> str:
    """A figure with its alternative text, no wider than the page."""
    encoded, words = base64.b64encode(png).decode(), html.escape(figure.alt_text, quote=True)
    style = f"width: {plots.displayed_width(figure)}px; max-width: 100%"
    return f'<img alt="{words}" src="data:image/png;base64,{encoded}" style="{style}">'


def choice(description: str, options, value) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(description=description, options=options, value=value, continuous_update=False)


def explore_codebook() -> Explorer:
    """Weights, data type and block size: where the levels lie, how often each is used, and the error."""
    samples = _weights_to_explore()

    def draw(weights: str, datatype: str, block_size: int) -> Figure:
        w, kind = samples[weights], get_datatype(datatype)
        q = quantize(w, datatype, block_size)
        scales = q.scales.repeat_interleave(block_size)
        normalized = w / scales if q.offsets is None else (w - q.offsets.repeat_interleave(block_size)) / scales
        codes = torch.stack((q.codes >> 4, q.codes & 15), 1).view(-1)
        shares = torch.bincount(codes.int(), minlength=16) / len(codes)
        error = ((q.dequantize() - w).norm() / w.norm()).item()
        entropy = -torch.special.xlogy(shares, shares).sum().item() / math.log(2)
        title = f"{weights}, {datatype}, blocks of {block_size}: {q.bits_per_parameter:.3f} bits per weight\n"
        title += f"error {error:.1%} of the weights' RMS, entropy of the codes {entropy:.2f} bits"
        return plots.codebook(normalized.numpy(), kind.levels, shares.tolist(), error, title)

    controls = {
        "weights": ipywidgets.ToggleButtons(description="weights", options=list(samples), value="Gaussian"),
        "datatype": ipywidgets.ToggleButtons(description="data type", options=list(DATATYPES), value="nf4"),
        "block_size": choice("block size", [16, 32, 64, 128, 256, 512, 1024, 2048, 4096], 64),
    }
    question = "Find weights and a block size for which NF4 is not the best of the four. What do its unused codes say?"
    return Explorer(controls, draw, question)


def _weights_to_explore() -> dict[str, torch.Tensor]:
    """Four kinds of weights, fewer than what kernels are compiled for: each data type would compile for seconds."""
    generator = torch.Generator().manual_seed(0)
    gaussian, other = torch.randn(2, 2**15, generator=generator)
    chi_squared = torch.randn(3, 2**15, generator=generator).square().sum(0)
    with_outliers = gaussian.clone()
    with_outliers[100::1024] = 20.0
    return {
        "Gaussian": gaussian,
        "Student t, 3": other / (chi_squared / 3).sqrt(),
        "uniform": 2 * torch.rand(2**15, generator=generator) - 1,
        "outliers": with_outliers,
    }


def explore_scale() -> Explorer:
    """A scale and a code: what the code decodes to, and the error of a block of weights in signed 4-bit integers."""
    weights = torch.randn(16, generator=torch.Generator().manual_seed(308)) * 0.4  # least error well below absmax

    def decoded(scale: float) -> torch.Tensor:
        return (weights / scale).round().clamp(-7, 7) * scale

    def error(scale: float) -> float:
        return (decoded(scale) - weights).square().mean().sqrt().item()

    grid = [0.02 + 0.001 * i for i in range(231)]
    curve = [(scale, error(scale)) for scale in grid]
    controls = {
        "scale": ipywidgets.FloatSlider(
            description="scale s", min=0.02, max=0.25, step=0.001, value=0.125, readout_format=".3f",
            continuous_update=False,
        ),
        "code": ipywidgets.IntSlider(description="code Q", min=-7, max=7, value=6, continuous_update=False),
    }  # fmt: skip

    def draw(scale: float, code: int) -> Figure:
        return plots.scale_and_error(weights.tolist(), decoded(scale).tolist(), curve, scale, code)

    question = "Where is the error least: where the largest weight just fits, or at a smaller scale that clips it?"
    return Explorer(controls, draw, question)


def explore_rank() -> Explorer:
    """Model, rank and targets: parameters of each layer's adapter beside its weight's, and in all."""
    targets = {
        "all linear layers": ("q", "k", "v", "o", "gate", "up", "down"),
        "attention": ("q", "k", "v", "o"),
        "queries and values": ("q", "v"),
        "MLP": ("gate", "up", "down"),
    }

    def draw(model: str, rank: int, adapted: str) -> Figure:
        shape = ModelShape.of(find_config(model))
        kinds, trained = {}, 0
        for path, (n_in, n_out) in shape.linears.items():
            name = path.removesuffix("_proj")
            count = rank * (n_in + n_out) if name in targets[adapted] else 0
            kinds.setdefault((n_in, n_out, count), []).append(name)
            trained += shape.layers * count
        rows = [(f"{', '.join(names)}: {o} × {i}", i * o, count) for (i, o, count), names in kinds.items()]
        title = f"{model}, rank {rank}: {trained:,} trained, {trained / shape.parameters:.2%}"
        return plots.parameters_of_rank(rows, title)

    controls = {
        "model": ipywidgets.Dropdown(description="model", options=list(PRESETS), value="SmolLM2-135M-Instruct"),
        "rank": choice("rank", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512], 16),
        "adapted": ipywidgets.Dropdown(description="adapters on", options=list(targets), value="all linear layers"),
    }
    question = "From which rank on does an adapter hold more numbers than the weight it stands beside?"
    return Explorer(controls, draw, question)


def explore_pages(pages: int = 24, steps: int = 6) -> Explorer:
    """Room on the device and the order of the sweep: where each page is, if the least recently used leaves first."""

    def draw(room: int, order: str) -> Figure:
        forth = list(range(pages))
        sweeps = [forth if order == "always forward" or step % 2 == 0 else forth[::-1] for step in range(steps)]
        moves, fetched = least_recently_used([page for sweep in sweeps for page in sweep], room)
        last = sum(use >= pages * (steps - 1) for use in fetched)
        title = f"{order}, room for {room} of {pages}: {last} pages fetched in the last step"
        ends = [pages * step for step in range(1, steps)]
        return plots.page_timeline([(title, moves)], pages, pages * steps, "pages used so far", ends)

    controls = {
        "room": ipywidgets.IntSlider(
            description="room (pages)", min=1, max=pages, value=pages // 2, continuous_update=False
        ),
        "order": ipywidgets.ToggleButtons(description="sweep", options=["always forward", "back and forth"]),
    }
    question = "How much room does each sweep need before the last step fetches fewer than all pages?"
    return Explorer(controls, draw, question)


def least_recently_used(order: list[int], room: int) -> tuple[list[tuple[int, int, str]], list[int]]:
    """Moves (use, page, tier) and the uses at which a page had to be fetched, for pages used in this order."""
    there: OrderedDict[int, None] = OrderedDict()
    moves, fetched = [], []
    for use, page in enumerate(order):
        if page in there:
            there.move_to_end(page)
            continue
        if len(there) == room:
            moves.append((use, there.popitem(last=False)[0], "disk"))
        there[page] = None
        moves.append((use, page, "device"))
        fetched.append(use)
    return moves, fetched


def explore_fit() -> Explorer:
    """Model, method, rank, batch, length and card: the budget of a training step, and whether it fits."""

    def draw(model, method, rank, batch_size, sequence_length, checkpointing, gpu) -> Figure:
        most = min(min(pair) for pair in ModelShape.of(find_config(model)).linears.values())
        mode = "non-reentrant" if checkpointing else "none"
        budget = predict_training(model, method, min(rank, most), batch_size, sequence_length, checkpointing=mode)
        found = fit_to_gpu(budget, gpu)
        title = f"{budget.peak / 1e9:,.1f} GB: " + ("it fits" if found.fits else "it does not fit")
        if not found.fits:
            title += f"; cheapest change: {found.change}" if found.change else ", whatever is changed"
        sizes = {name: size / 1e9 for name, size in budget.by_category.items() if size >= 5e6}
        return plots.memory_against_limit(sizes, gpu, _wrapped(title), found.reserve_gb)

    controls = {
        "model": ipywidgets.Dropdown(description="model", options=list(PRESETS), value="llama-65b"),
        "method": ipywidgets.ToggleButtons(description="method", options=list(METHODS), value="qlora"),
        "rank": choice("rank", [4, 8, 16, 32, 64, 128, 256], 64),
        "batch_size": choice("batch size", [1, 2, 4, 8, 16, 32], 1),
        "sequence_length": choice("sequence length", [128, 256, 512, 1024, 2048, 4096, 8192], 512),
        "checkpointing": ipywidgets.Checkbox(description="gradient checkpointing", value=True),
        "gpu": choice("GPU (GB)", [8, 12, 16, 24, 32, 40, 48, 80, 141], 48),
    }
    question = "What costs most here: a higher rank, more rows, longer rows, or leaving checkpointing out?"
    return Explorer(controls, draw, question)


def explore_gpus() -> Explorer:
    """Model, method and number of GPUs: what is on each, and whether it fits, with the usual reserve."""

    def draw(model, method, processes, batch_size, sequence_length, gpu) -> Figure:
        shape = (batch_size, sequence_length)
        budget = predict_per_process(model, method, processes, 64, *shape, checkpointing="non-reentrant")
        reserve = usual_reserve(gpu)
        fits = budget.peak <= (gpu - reserve) * 1e9
        many = f"each of {processes} GPUs" if processes > 1 else "one GPU"
        title = f"{method} of {model}: {budget.peak / 1e9:,.1f} GB on {many}: " + ("it fits" if fits else "too much")
        sizes = {name: size / 1e9 for name, size in budget.by_category.items() if size >= 5e6}
        return plots.memory_against_limit(sizes, gpu, title, reserve)

    controls = {
        "model": ipywidgets.Dropdown(description="model", options=list(PRESETS), value="llama-65b"),
        "method": ipywidgets.ToggleButtons(description="method", options=list(METHODS), value="qlora"),
        "processes": choice("GPUs", [1, 2, 4, 8, 16, 32], 2),
        "batch_size": choice("rows per GPU", [1, 2, 4, 8, 16], 1),
        "sequence_length": choice("sequence length", [128, 256, 512, 1024, 2048, 4096, 8192], 512),
        "gpu": choice("GPU (GB)", [8, 12, 16, 24, 32, 40, 48, 80, 141], 24),
    }
    question = "How many GPUs of 80 GB does full fine-tuning need here, and how many of 24 GB does QLoRA?"
    return Explorer(controls, draw, question)


def _wrapped(title: str, width: int = 78) -> str:
    """At most two lines, so that the figure keeps its size."""
    if len(title) <= width:
        return title
    cut = title.rfind(" ", 0, width)
    rest = title[cut + 1 :]
    return title[:cut] + "\n" + (rest if len(rest) <= width else rest[: math.floor(width - 1)] + "…")
