"""Where in the pages each parameter's state lies, and what a step does with it there.

A page holds the first moments of its elements, then the second ones (in 8 bits: two rows of codes, two of scales). A
parameter's part of a page is a segment. Segments begin at multiples of 64 elements (256 in 8 bits, so that a block of
codes belongs to one parameter): what vector instructions do in one go is then the same as in a parameter of its own.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from qlora_lab.machine.arguments import is_number
from qlora_lab.paging.adamw import Coefficients, update
from qlora_lab.paging.eight_bit_state import STATE_BLOCK, decode_state, encode_state
from qlora_lab.paging.store import Page, PageStore
from qlora_lab.paging.tiers.copier import NEW

LARGEST_GRADIENT = torch.finfo(torch.float32).max ** 0.5
SMALLEST_8BIT = 4096  # elements; smaller parameters keep their dtype, as in bitsandbytes
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(eq=False, slots=True)
class PagedParameter:
    """A parameter whose moments lie in pages. moments_dtype: what they are read and written in. strides: of moments in
    its shape, as `torch.zeros_like` makes them. step: updates so far. What follows it is set during a step only."""

    tensor: torch.Tensor
    label: str
    moments_dtype: torch.dtype
    shape: torch.Size = field(init=False)
    strides: tuple[int, ...] = field(init=False)
    dtype: torch.dtype = field(init=False)
    segments: list["Segment"] = field(default_factory=list)
    step: int = 0
    coefficients: Coefficients | None = None
    grad: torch.Tensor | None = None
    flat: torch.Tensor | None = None  # the parameter and its gradient (n,), in the order of the moments
    flat_grad: torch.Tensor | None = None

    def __post_init__(self):
        self.shape, self.dtype = self.tensor.shape, self.tensor.dtype
        self.strides = torch.empty_like(self.tensor, device="meta").stride()

    def check(self) -> None:
        if self.tensor.shape != self.shape or self.tensor.dtype != self.dtype:
            raise ValueError(
                f"parameter {self.label} was {tuple(self.shape)} of {self.dtype} and is now "
                f"{tuple(self.tensor.shape)} of {self.tensor.dtype}; make a new optimizer for it"
            )

    def begin(self, coefficients: Coefficients, maximize: bool) -> None:
        self.coefficients = coefficients
        self.grad = -self.tensor.grad if maximize else self.tensor.grad

    def part(self, segment: "Segment") -> tuple[torch.Tensor, torch.Tensor]:
        """A segment's elements of the parameter and of the gradient, each (length,)."""
        if self.flat is None:
            self.flat, self.flat_grad = self.in_order(self.tensor), self.in_order(self.grad)
        part = slice(segment.start, segment.start + segment.length)
        return self.flat[part], self.flat_grad[part]

    def end(self) -> None:
        if self.flat is not None and self.flat.data_ptr() != self.tensor.data_ptr():  # gaps between its elements
            self.tensor.copy_(self.flat.as_strided(self.shape, self.strides))
        self.coefficients = self.grad = self.flat = self.flat_grad = None

    def in_order(self, values: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """`values` in the parameter's shape -> (n,), in the order of the moments: a view where that is possible."""
        dtype = dtype or values.dtype
        if values.stride() != self.strides or values.dtype != dtype:
            values = torch.empty_strided(self.shape, self.strides, dtype=dtype, device=values.device).copy_(values)
        return values.as_strided((values.numel(),), (1,))


@dataclass(eq=False, slots=True)
class Segment:
    """`length` elements of a parameter's moments, from `start` on; at `offset` in a page of `capacity` elements."""

    parameter: PagedParameter
    page: Page
    capacity: int
    offset: int
    start: int
    length: int


class MomentSegment(Segment):
    """Moments in the parameter's dtype, as torch keeps them."""

    __slots__ = ()
    alignment: ClassVar[int] = 64  # elements

    @staticmethod
    def dtype_of(parameter: torch.Tensor) -> torch.dtype:
        """What its moments are read and written in."""
        return parameter.dtype

    @staticmethod
    def bytes_of(parameter: torch.Tensor) -> int:
        return 2 * parameter.numel() * parameter.element_size()

    @staticmethod
    def capacity_of(page_size: int, parameter: torch.Tensor) -> int:
        return page_size // (2 * parameter.element_size())

    def read(self, memory: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """First and second moments as views of a page, each (length,). memory: uint8 (page_size,)."""
        typed = memory.view(self.parameter.dtype)
        return tuple(typed[at : at + self.length] for at in (self.offset, self.capacity + self.offset))

    def write(self, memory: torch.Tensor, moments: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """Set both moments, each (length,); None stands for zeros."""
        for row, values in zip(self.read(memory), moments or (None, None), strict=True):
            row.zero_() if values is None else row.copy_(values)

    def views(self, memory: torch.Tensor) -> tuple:
        """What `update` needs of a page's memory: the moments, in the parameter's shape if all of it is here."""
        rows = self.read(memory)
        if self.whole:
            rows = tuple(row.as_strided(self.parameter.shape, self.parameter.strides) for row in rows)
        return rows

    @property
    def whole(self) -> bool:
        return len(self.parameter.segments) == 1

    @staticmethod
    def update(coefficients: Coefficients, segments: list[tuple["MomentSegment", tuple]]) -> None:
        """One step for segments of one dtype, each with its `views`; all of them in one go."""
        tensors = []  # of each the parameter, its gradient, the two moments
        for segment, moments in segments:
            p = segment.parameter
            tensors.append((*((p.tensor, p.grad) if segment.whole else p.part(segment)), *moments))
        update(coefficients, *map(list, zip(*tensors, strict=True)))


class CodeSegment(Segment):
    """Moments in 8-bit codes, with a scale for each block of 256 (see `eight_bit_state`)."""

    __slots__ = ()
    alignment: ClassVar[int] = STATE_BLOCK

    @staticmethod
    def dtype_of(parameter: torch.Tensor) -> torch.dtype:
        return torch.float32

    @staticmethod
    def bytes_of(parameter: torch.Tensor) -> int:
        return 2 * parameter.numel()  # the scales are left out

    @staticmethod
    def capacity_of(page_size: int, parameter: torch.Tensor) -> int:
        return page_size * STATE_BLOCK // (2 * STATE_BLOCK + 8) // STATE_BLOCK * STATE_BLOCK

    def read(self, memory: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """First and second moments decoded, each float32 (length,)."""
        return _decoded(self.views(memory))

    def write(self, memory: torch.Tensor, moments: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        if moments is not None:
            _encode(moments, self.views(memory))
            return
        for row in self.views(memory):
            for values in row:
                values.zero_()

    def views(self, memory: torch.Tensor) -> tuple:
        """(codes uint8 (length,), scales float32 (blocks,)) of the first moments, and of the second ones."""
        scales = memory[2 * self.capacity : 2 * self.capacity + 8 * self.capacity // STATE_BLOCK].view(torch.float32)
        blocks = -(-self.length // STATE_BLOCK)
        result = []
        for at in (self.offset, self.capacity + self.offset):
            first = at // STATE_BLOCK
            result.append((memory[at : at + self.length], scales[first : first + blocks]))
        return tuple(result)

    @staticmethod
    def update(coefficients: Coefficients, segments: list[tuple["CodeSegment", tuple]]) -> None:
        """One step: decode, update in float32, encode."""
        for segment, codes in segments:
            p, g = segment.parameter.part(segment)
            moments = _decoded(codes)
            wide = p.float()  # p itself, if it is float32
            update(coefficients, [wide], [g.float()], *([row] for row in moments))
            if wide is not p:
                p.copy_(wide)
            _encode(moments, codes)


def _decoded(codes: tuple) -> tuple[torch.Tensor, ...]:
    return tuple(decode_state(*row, signed) for row, signed in zip(codes, (True, False), strict=True))


def _encode(moments: tuple, codes: tuple) -> None:
    for values, row, signed in zip(moments, codes, (True, False), strict=True):
        encode_state(values.to(row[0].device, torch.float32), signed, *row)


def segment_class(parameter: torch.Tensor, state_bits: int) -> type[MomentSegment] | type[CodeSegment]:
    """How a parameter's moments are kept."""
    coded = state_bits == 8 and parameter.numel() >= SMALLEST_8BIT and parameter.dtype != torch.float64
    return CodeSegment if coded else MomentSegment


def moment_bytes(parameters: list[torch.Tensor], state_bits: int) -> int:
    """Bytes of both moments of all parameters."""
    return sum(segment_class(p, state_bits).bytes_of(p) for p in parameters)


@dataclass
class Placement:
    """Parameters laid out, not yet taken over."""

    parameters: dict[torch.Tensor, PagedParameter]
    segments: list[Segment]
    new_pages: list[Page]
    open_pages: dict[tuple, tuple[Page, int]]


class Layout:
    """All parameters of an optimizer, and their segments by page. Moments of one dtype fill page after page.

    Args:
        store: whose pages they are. state_bits: 32, or 8 for `CodeSegment`s.
    """

    def __init__(self, store: PageStore, state_bits: int):
        self.store, self.state_bits = store, state_bits
        self.parameters: dict[torch.Tensor, PagedParameter] = {}
        self.segments: dict[Page, list[Segment]] = {}
        # the page that is being filled and its next element, by kind of segment and dtype
        self._open_pages: dict[tuple, tuple[Page, int]] = {}

    def add(self, parameters: list[tuple[torch.Tensor, str]]) -> None:
        """Lay out parameters, each with a label for messages: all or none.

        Raises:
            ValueError: a dtype that has no AdamW here, or pages that fit nowhere. PageFileError: the disk is full.
        """
        placement = self._place(parameters)
        self.store.add(placement.new_pages)
        self.parameters |= placement.parameters
        self._open_pages = placement.open_pages
        for segment in placement.segments:
            segments = self.segments.setdefault(segment.page, [])
            segments.append(segment)
            segment.page.views = None
            first, last = segments[0].parameter.label, segment.parameter.label
            segment.page.label = first if first == last else f"{first} … {last}"

    def _place(self, parameters: list[tuple[torch.Tensor, str]]) -> Placement:
        placement = Placement({}, [], [], dict(self._open_pages))
        for p, label in parameters:
            if p.dtype not in DTYPES:
                raise ValueError(f"parameter {label} is {p.dtype}; PagedAdamW trains {', '.join(map(str, DTYPES))}")
            kind = segment_class(p, self.state_bits)
            parameter = placement.parameters[p] = PagedParameter(p, label, kind.dtype_of(p))
            key, capacity = (kind, kind.dtype_of(p)), kind.capacity_of(self.store.page_size, p)
            start = 0
            while start < p.numel():
                page, offset = placement.open_pages.get(key, (None, capacity))
                left = p.numel() - start
                if offset >= capacity or (start == 0 and capacity - offset < left <= capacity // 16):
                    page, offset = Page(), 0  # small ones are not cut in two
                    placement.new_pages.append(page)
                length = min(left, capacity - offset)
                segment = kind(parameter, page, capacity, offset, start, length)
                parameter.segments.append(segment)
                placement.segments.append(segment)
                start += length
                placement.open_pages[key] = page, offset + -(-length // kind.alignment) * kind.alignment
        return placement

    def update(self, pages: list[Page]) -> None:
        """A step for all parameters in these pages, which are on the device, that have begun one."""
        groups: dict[tuple, list[tuple[Segment, tuple]]] = {}
        for page in pages:
            segments = self.segments[page]
            if page.views is None:
                page.views = [segment.views(page.place.memory) for segment in segments]
            for segment, views in zip(segments, page.views, strict=True):
                p = segment.parameter
                if p.grad is not None:
                    groups.setdefault((type(segment), p.dtype, p.coefficients), []).append((segment, views))
        for (kind, _, coefficients), group in groups.items():
            kind.update(coefficients, group)

    def read(self, parameters: list[PagedParameter]) -> dict[PagedParameter, dict[str, torch.Tensor]]:
        """The moments of parameters, in their shapes, in CPU memory; no page moves."""
        result, flat = {}, {}
        wanted: dict[Page, list[Segment]] = {}
        for p in parameters:
            result[p] = {
                name: torch.empty_strided(p.shape, p.strides, dtype=p.moments_dtype, device="cpu") for name in MOMENTS
            }
            flat[p] = [p.in_order(values) for values in result[p].values()]
            for segment in p.segments:
                wanted.setdefault(segment.page, []).append(segment)
        for page, segments in wanted.items():
            memory = self.store.peek(page)
            for segment in segments:
                for row, values in zip(flat[segment.parameter], segment.read(memory), strict=True):
                    row[segment.start : segment.start + segment.length] = values
        return result

    def write(self, moments: dict[PagedParameter, dict[str, torch.Tensor]]) -> None:
        """Set the moments of parameters, given in their shapes, and those of all others to zero."""
        flat = {p: [p.in_order(given[name], p.moments_dtype) for name in MOMENTS] for p, given in moments.items()}
        used = [
            page
            for page in self.store.pages
            if page.tier != NEW or any(segment.parameter in moments for segment in self.segments[page])
        ]
        for (page,) in self.store.sweep(used):
            for segment in self.segments[page]:
                part, rows = slice(segment.start, segment.start + segment.length), flat.get(segment.parameter)
                segment.write(page.place.memory, rows and tuple(row[part] for row in rows))


class StateView(Mapping):
    """A parameter's state as `torch.optim.AdamW` keeps it; read from its pages, as a copy, when asked for."""

    def __init__(self, layout: Layout, parameter: PagedParameter):
        self._layout, self.parameter = layout, parameter

    def __getitem__(self, name: str) -> torch.Tensor:
        if name == "step":
            return torch.tensor(float(self.parameter.step))
        if name not in MOMENTS:
            raise KeyError(name)
        return self._layout.read([self.parameter])[self.parameter][name]

    def __iter__(self) -> Iterator[str]:
        return iter(("step", *MOMENTS))

    def __len__(self) -> int:
        return 1 + len(MOMENTS)


def check_state(index: int, p: torch.Tensor, state: Mapping | None, state_bits: int) -> None:
    """Raise ValueError where `state` is none of AdamW for parameter number `index`; None is none yet."""
    if state is None:
        return
    missing = [name for name in ("step", *MOMENTS) if name not in state]
    more = [name for name in state if name not in ("step", *MOMENTS)]
    if missing or more:
        fault = f"lacks {', '.join(missing)}" if missing else f"holds {', '.join(more)}"
        raise ValueError(f"the state of parameter {index} {fault}; it is no state of AdamW")
    step = state["step"].item() if isinstance(state["step"], torch.Tensor) else state["step"]
    if not is_number(step) or step != int(step) or step < 0:
        raise ValueError(f"the state of parameter {index} is of step {step}, which is no number of steps")
    for name in MOMENTS:
        values = state[name]
        if not isinstance(values, torch.Tensor) or not values.is_floating_point():
            raise ValueError(f"{name} of parameter {index} is no tensor of floats")
        if values.shape != p.shape:
            raise ValueError(
                f"{name} of parameter {index} has the shape {tuple(values.shape)}, the parameter {tuple(p.shape)}"
            )
        coded = segment_class(p, state_bits) is CodeSegment
        if coded and not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} of parameter {index} holds NaN or infinity, which 8 bits cannot keep apart")


def check_gradients(parameters: Iterable[PagedParameter], state_bits: int) -> None:
    """Raise FloatingPointError where a gradient would make a moment NaN or infinite that is kept in a block of codes.

    A block's scale is its largest number: one NaN, and the other 255 would be lost with it.
    """
    coded = [p for p in parameters if p.tensor.grad is not None and segment_class(p.tensor, state_bits) is CodeSegment]
    if not coded:
        return
    largest = torch.stack([p.tensor.grad.abs().amax().float() for p in coded])
    fine = (largest < LARGEST_GRADIENT).tolist()  # false for NaN too
    for p, good in zip(coded, fine, strict=True):
        if not good:
            raise FloatingPointError(
                f"the gradient of parameter {p.label} holds NaN, infinity or a number whose square is, which in 8 bits "
                "would spoil a block of 256; leave this step out (as a GradScaler does), or take state_bits=32"
            )
