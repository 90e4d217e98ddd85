"""Where in the pages each parameter's state lies.

A page holds the first moments of its elements, then the second ones (in 8 bits: two rows of codes, two of scales). A
parameter's part of a page is a segment. Segments begin at multiples of 64 elements (256 in 8 bits, so that a block of
codes belongs to one parameter): what vector instructions do in one go is then the same as in a parameter of its own.
"""

from dataclasses import dataclass, field

import torch

from qlora_lab.paging.eight_bit_state import STATE_BLOCK, decode_state, encode_state
from qlora_lab.paging.page import Page
from qlora_lab.paging.store import PageStore

ALIGNMENT = 64  # elements
SMALLEST_8BIT = 4096  # elements; smaller parameters keep their dtype, as in bitsandbytes
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(eq=False, slots=True)
class Record:
    """A parameter and what is known of it. strides: of its state in memory (as `torch.zeros_like`'s). step: updates so
    far. grad and what follows it are set during a step only."""

    tensor: torch.Tensor
    label: str
    bits: int
    shape: torch.Size = field(init=False)
    strides: tuple[int, ...] = field(init=False)
    dtype: torch.dtype = field(init=False)
    segments: list["Segment"] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    step: int = 0
    grad: torch.Tensor | None = None
    coefficients: object = None
    flat: torch.Tensor | None = None  # the parameter and its gradient in memory order
    flat_grad: torch.Tensor | None = None
    copied: bool = False

    def __post_init__(self):
        self.shape, self.dtype = self.tensor.shape, self.tensor.dtype
        self.strides = torch.empty_like(self.tensor, device="meta").stride()

    @property
    def state_dtype(self) -> torch.dtype:
        return torch.float32 if self.bits == 8 else self.dtype

    def check(self) -> None:
        if self.tensor.shape != self.shape or self.tensor.dtype != self.dtype:
            raise ValueError(
                f"parameter {self.label} was {tuple(self.shape)} of {self.dtype} and is now "
                f"{tuple(self.tensor.shape)} of {self.tensor.dtype}; make a new optimizer for it"
            )

    def begin(self, coefficients, maximize: bool) -> None:
        p, self.coefficients = self.tensor, coefficients
        self.grad = -p.grad if maximize else p.grad
        if len(self.segments) > 1 or self.bits == 8:
            self.flat = self.in_order(p)
            self.copied = self.flat.data_ptr() != p.data_ptr()  # gaps between its elements
            self.flat_grad = self.in_order(self.grad)

    def parts(self, segment: "Segment") -> tuple[torch.Tensor, torch.Tensor]:
        """A segment's elements of the parameter and of the gradient."""
        if self.flat is None:
            return self.tensor, self.grad
        part = slice(segment.start, segment.start + segment.length)
        return self.flat[part], self.flat_grad[part]

    def end(self) -> None:
        if self.copied:
            self.tensor.copy_(self.flat.as_strided(self.shape, self.strides))
        self.grad = self.coefficients = self.flat = self.flat_grad = None
        self.copied = False

    def in_order(self, value: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """`value`'s elements (n,) in the order of the state in memory: a view where that is possible."""
        dtype = dtype or value.dtype
        if value.stride() != self.strides or value.dtype != dtype:
            value = torch.empty_strided(self.shape, self.strides, dtype=dtype, device=value.device).copy_(value)
        return value.as_strided((value.numel(),), (1,))


@dataclass(eq=False, slots=True)
class Segment:
    """`length` elements of a parameter's state, from `start` on; at `offset` in a page of `capacity` elements."""

    record: Record
    start: int
    length: int
    offset: int
    capacity: int

    @property
    def bits(self) -> int:
        return self.record.bits

    def views(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First and second moments as views of a page (32 bits only), in the parameter's shape if all of it is here."""
        if self.bits == 8:
            return ()
        typed = memory.view(self.record.dtype)
        rows = tuple(typed[at : at + self.length] for at in (self.offset, self.capacity + self.offset))
        if len(self.record.segments) == 1:
            rows = tuple(row.as_strided(self.record.shape, self.record.strides) for row in rows)
        return rows

    def read(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First and second moments (length,), decoded if they are codes."""
        if self.bits == 8:
            return tuple(
                decode_state(*rows, signed) for rows, signed in zip(self._codes(memory), (True, False), strict=True)
            )
        typed = memory.view(self.record.dtype)
        return tuple(typed[at : at + self.length] for at in (self.offset, self.capacity + self.offset))

    def write(self, memory: torch.Tensor, exp_avg: torch.Tensor | None, exp_avg_sq: torch.Tensor | None) -> None:
        """Set both moments, each (length,); None stands for zeros."""
        if self.bits == 32:
            for row, values in zip(self.read(memory), (exp_avg, exp_avg_sq), strict=True):
                row.zero_() if values is None else row.copy_(values)
            return
        for rows, values, signed in zip(self._codes(memory), (exp_avg, exp_avg_sq), (True, False), strict=True):
            if values is None:
                for row in rows:
                    row.zero_()
            else:
                encode_state(values.to(memory.device, torch.float32), signed, *rows)

    def _codes(self, memory: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        scales = memory[2 * self.capacity : 2 * self.capacity + 8 * self.capacity // STATE_BLOCK].view(torch.float32)
        blocks, first = -(-self.length // STATE_BLOCK), self.offset // STATE_BLOCK
        result = []
        for row in (0, 1):
            at = row * self.capacity + self.offset
            scale_at = row * self.capacity // STATE_BLOCK + first
            result.append((memory[at : at + self.length], scales[scale_at : scale_at + blocks]))
        return tuple(result)


@dataclass
class Plan:
    """Parameters laid out, not yet taken over."""

    records: dict[torch.Tensor, Record]
    placed: list[tuple[Page, Segment]]
    new_pages: list[Page]
    open: dict


class Layout:
    """All parameters of an optimizer and their segments by page. State of one dtype fills page after page."""

    def __init__(self, state_bits: int):
        self.state_bits = state_bits
        self.page_size = 0
        self.records: dict[torch.Tensor, Record] = {}
        self.segments: dict[Page, list[Segment]] = {}
        self._open: dict[tuple, tuple[Page, int]] = {}  # by (dtype, bits): the page being filled, and its next element

    def bytes_of(self, tensors: list[torch.Tensor]) -> int:
        return sum(2 * p.numel() * (1 if self._bits(p) == 8 else p.element_size()) for p in tensors)

    def plan(self, parameters: list[tuple[torch.Tensor, str]], pages: int) -> Plan:
        """Place parameters (each with a name); new pages are numbered from `pages` on.

        Raises:
            ValueError: a dtype that has no AdamW here.
        """
        plan = Plan({}, [], [], dict(self._open))
        for p, label in parameters:
            if p.dtype not in DTYPES:
                raise ValueError(f"parameter {label} is {p.dtype}; PagedAdamW trains {', '.join(map(str, DTYPES))}")
            record = plan.records[p] = Record(p, label, self._bits(p))
            kind, capacity = (p.dtype if record.bits == 32 else None, record.bits), self._capacity(p, record.bits)
            alignment = ALIGNMENT if record.bits == 32 else STATE_BLOCK
            start = 0
            while start < p.numel():
                page, offset = plan.open.get(kind, (None, capacity))
                left = p.numel() - start
                if offset >= capacity or (start == 0 and capacity - offset < left <= capacity // 16):
                    page, offset = Page(pages + len(plan.new_pages)), 0  # small ones are not cut in two
                    plan.new_pages.append(page)
                length = min(left, capacity - offset)
                segment = Segment(record, start, length, offset, capacity)
                record.segments.append(segment)
                record.pages.append(page)
                plan.placed.append((page, segment))
                start += length
                plan.open[kind] = page, offset + -(-length // alignment) * alignment
        return plan

    def commit(self, plan: Plan, pages: list[Page]) -> None:
        """Take a plan over; its new pages are appended to `pages`."""
        pages += plan.new_pages
        self.records |= plan.records
        self._open = plan.open
        for page, segment in plan.placed:
            segments = self.segments.setdefault(page, [])
            segments.append(segment)
            page.views = None
            first, last = segments[0].record.label, segment.record.label
            page.label = first if first == last else f"{first} … {last}"

    def gather(self, records: list[Record], store: PageStore) -> dict[Record, dict[str, torch.Tensor]]:
        """The moments of parameters, in their shapes, in CPU memory; no page moves."""
        result, flat = {}, {}
        wanted: dict[Page, list[Segment]] = {}
        for record in records:
            rows = [
                torch.empty_strided(record.shape, record.strides, dtype=record.state_dtype, device="cpu")
                for _ in (0, 1)
            ]
            result[record] = dict(zip(("exp_avg", "exp_avg_sq"), rows, strict=True))
            flat[record] = [row.as_strided((row.numel(),), (1,)) for row in rows]
            for page, segment in zip(record.pages, record.segments, strict=True):
                wanted.setdefault(page, []).append(segment)
        for page, segments in wanted.items():
            copy = store.peek(page)
            for segment in segments:
                for row, values in zip(flat[segment.record], segment.read(copy), strict=True):
                    row[segment.start : segment.start + segment.length] = values
        return result

    def _bits(self, p: torch.Tensor) -> int:
        return 8 if self.state_bits == 8 and p.numel() >= SMALLEST_8BIT and p.dtype != torch.float64 else 32

    def _capacity(self, p: torch.Tensor, bits: int) -> int:
        """Elements in a page, a multiple of the alignment."""
        if bits == 32:
            return self.page_size // (2 * p.element_size())
        return self.page_size * STATE_BLOCK // (2 * STATE_BLOCK + 8) // STATE_BLOCK * STATE_BLOCK
