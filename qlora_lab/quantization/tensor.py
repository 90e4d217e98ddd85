"""4-bit block-wise quantization, as QLoRA stores its frozen weights.

A weight tensor is read row by row as one long line and cut into blocks (64 weights). A block's scale is its largest
magnitude (absmax); each weight, divided by it, becomes the code of the nearest of sixteen levels. Two codes share a
byte.

    quantize      w -> absmax = max|w| per block,  code = nearest level to w / absmax
    dequantize    w' = absmax * level[code]
    double        the absmax values are themselves stored in 8 bits: minus their mean, in blocks of 256

Codes, scales and decoded weights equal bitsandbytes' bit for bit on a CPU. (Its build for GPUs divides less exactly: a
weight that all but lies on a threshold may get the neighbouring code there.) With double quantization the 8-bit codes
of the scales are the exact nearest ones; a CPU build of bitsandbytes takes a neighbour for about 0.2 % of them.

The formats since NF4 go the same way, with other levels and other ways to store a scale (`datatypes`). Codes, scales
and decoded weights of MXFP4 and NVFP4 equal torchao's bit for bit, those of Q4_0 and Q4_1 the `gguf` package's. Two
places aside: torchao decodes MXFP4 blocks whose largest weight is below 2^-124 to half their size, and makes NaN of a
tensor of zeros in NVFP4 (where one is tinier than 1e-33, scales differ); here neither happens.

`blockwise` holds the definitions of the arithmetic; `fast.kernels` the same in a form that compiles to vector code,
used for large tensors; `fast.operator` makes an operator of the way back. Here all of it becomes a tensor type.

Sources: QLoRA (Dettmers et al. 2023), sections 2 and 3; the layout of bytes and of nested scales is bitsandbytes'.
"""

import json
import os
from dataclasses import dataclass, field, fields

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qlora_lab.machine.arguments import is_count
from qlora_lab.machine.dtypes import FLOAT_DTYPES, without_autocast
from qlora_lab.machine.files import load_tensors, save_tensors
from qlora_lab.quantization.blockwise import (
    SCALE_BLOCK,
    decode_scales,
    dequantize_scales,
    find_tensor_scale,
    pack_codes,
    quantize_blocks,
    quantize_scales,
)
from qlora_lab.quantization.datatypes import DATATYPES, SCALES, SINCE_NF4, DataType, get_datatype
from qlora_lab.quantization.fast import compilation, kernels
from qlora_lab.quantization.fast.operator import dequantize_4bit

_FORMAT = "qlora_lab.QuantizedTensor.1"


def quantize(
    weight: torch.Tensor, datatype: str | DataType = "nf4", block_size: int | None = None, double_quant: bool = False
) -> "QuantizedTensor":
    """Quantize a tensor to 4 bits per element plus one scale per block.

    Args:
        weight: float32, float16 or bfloat16, of any shape (also empty) and layout. It is read in row-major order.
        datatype: "nf4", "fp4", "int4", "int4_affine", or one of those since: "nf4_float16", "int4_signed", "bof4",
            "bof4_s", "q4_0", "q4_1", "iq4_nl", "mxfp4", "nvfp4" (see `datatypes`).
        block_size: elements that share a scale; even, 16 to 4096. The last block may be shorter. None: the data type's
            own, where it has blocks of one size only (16 for "nvfp4", 32 for "mxfp4" and llama.cpp's, 64 for "bof4"
            and "bof4_s"), else 64.
        double_quant: store the scales in 8 bits (QLoRA's double quantization); for data types whose scales are float32
            and have no minimum beside them.

    Returns:
        A `QuantizedTensor` on the weight's device. Its tensors are ordinary ones also under `torch.inference_mode`.

    Raises:
        TypeError: `weight` is no tensor, or of another dtype, or packed by another library.
        ValueError: unknown data type, a block size that it does not have, a NaN or infinity in `weight` (the first is
            named), or magnitudes near the limit of what scales are stored in (see the message).
    """
    datatype = get_datatype(datatype)
    block_size = _check(weight, datatype, block_size, double_quant)
    if weight.device.type == "mps":  # its memory is the CPU's, which divides as everywhere else: the same codes
        return quantize(weight.detach().cpu(), datatype, block_size, double_quant).to(weight.device)
    with torch.inference_mode(False):  # what is made there could not be trained with
        flat = weight.detach().reshape(-1)
        tensor_scale = find_tensor_scale(flat, datatype)
        codes, scales, offsets = _quantize_flat(flat, datatype, block_size, tensor_scale)
        # an extreme weight is decoded to this, and an offset as it is
        constants = [decode_scales(scales, datatype, tensor_scale) * datatype.extreme, offsets]
        if not all(constant.isfinite().all() for constant in constants if constant is not None):
            _refuse_non_finite(weight, datatype)
        stored = {_name_of_scales(datatype): scales} if not double_quant else _quantize_scales(scales)
    if tensor_scale is not None:
        stored["scale_scales"] = tensor_scale
    if offsets is not None:
        stored["offsets"] = offsets
    return QuantizedTensor(
        codes, stored, torch.Size(weight.shape), weight.dtype, datatype.name, block_size, double_quant
    )


@dataclass(eq=False)
class QuantizedTensor:
    """A tensor in 4 bits: what `quantize` returns.

    Attributes:
        codes: uint8 (ceil(n / 2),); the first element of a pair in the high nibble. An odd tail is padded with the code
            of zero.
        stored: the tensors that hold the scales. Plain: "scales" float32 (blocks,), or float16. Double-quantized:
            "scale_codes" uint8 (blocks,), "scale_scales" float32 (ceil(blocks / 256),), "scale_offset" float32 ().
            Scales in E8M0: "scale_codes" uint8 (blocks,); in E4M3 also "scale_scales" float32 (1,). Affine data types
            also "offsets" (blocks,), each block's minimum, float32 or float16 as the scales are.
        shape, dtype: of the tensor that was quantized.
        datatype, block_size, double_quant: how it was quantized.
    """

    codes: torch.Tensor
    stored: dict[str, torch.Tensor] = field(repr=False)
    shape: torch.Size
    dtype: torch.dtype
    datatype: str = "nf4"
    block_size: int = 64
    double_quant: bool = False

    @classmethod
    def empty(
        cls,
        shape: torch.Size,
        dtype: torch.dtype,
        datatype: str | DataType = "nf4",
        block_size: int | None = None,
        double_quant: bool = False,
    ) -> "QuantizedTensor":
        """One of this shape whose codes and scales have no values yet, as `torch.empty` makes tensors."""
        datatype = get_datatype(datatype)
        block_size = check_options(datatype, block_size, double_quant)
        layout = _layout(shape, datatype, block_size, double_quant)
        stored = {name: torch.empty(size, dtype=of) for name, (of, size) in layout.items()}
        return cls(stored.pop("codes"), stored, shape, dtype, datatype.name, block_size, double_quant)

    @property
    def scales(self) -> torch.Tensor:
        """float32 (blocks,): the scales, decoded if they are stored in less. Those of signed data types have a sign.

        Under double quantization a scale far below the others of its tensor can decode to a negative number.
        """
        datatype, second = get_datatype(self.datatype), self.stored.get("scale_scales")
        if self.double_quant:
            return dequantize_scales(self.stored["scale_codes"], second, self.stored["scale_offset"])
        return decode_scales(self.stored[_name_of_scales(datatype)], datatype, second)

    @property
    def offsets(self) -> torch.Tensor | None:
        """float32 (blocks,): each block's minimum for affine data types, else None."""
        offsets = self.stored.get("offsets")
        return None if offsets is None else offsets.float()

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors: codes and everything that holds the scales."""
        return sum(t.numel() * t.element_size() for t in (self.codes, *self.stored.values()))

    @property
    def bits_per_parameter(self) -> float:
        """8 * nbytes / number of elements: 4.5 for nf4 at block 64, about 4.127 with double quantization."""
        return 8 * self.nbytes / self.shape.numel() if self.shape.numel() else 0.0

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def description(self) -> dict[str, str]:
        """What the bytes mean, as a file's header and a layer's state say it: all that is needed to decode them.

        A data type of one's own is described with its levels, as its name says nothing to another process; and with
        what else is not as usual.
        """
        description = {
            "format": _FORMAT,
            "shape": ",".join(map(str, self.shape)),
            "dtype": str(self.dtype).removeprefix("torch."),
            "datatype": self.datatype,
            "block_size": str(self.block_size),
            "double_quant": str(int(self.double_quant)),
        }
        if self.datatype not in (*DATATYPES, *SINCE_NF4):
            datatype = get_datatype(self.datatype)
            description |= {"levels": json.dumps(datatype.levels), "affine": str(int(datatype.affine))}
            rule = {
                f.name: getattr(datatype, f.name)
                for f in fields(DataType)[3:]
                if f.default != getattr(datatype, f.name)
            }
            description |= {"scaling": json.dumps(rule, sort_keys=True)} if rule else {}
        return description

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The decoded tensor: scale * level computed in float32, then rounded once to `dtype` (default: the original).

        In float64 it is the float32 numbers, unchanged.

        Raises:
            TypeError: `dtype` is not float64, float32, float16 or bfloat16.
        """
        dtype = dtype or self.dtype
        if dtype == torch.float64:
            return self.dequantize(torch.float32).double()
        if dtype not in FLOAT_DTYPES.values():
            raise TypeError(f"cannot dequantize to {dtype}; choose {', '.join(f'torch.{n}' for n in FLOAT_DTYPES)}")
        scales = self.stored["scale_codes" if "scale_codes" in self.stored else "scales"]
        others = (self.stored.get(name) for name in ("scale_scales", "scale_offset", "offsets"))
        how = self.datatype, self.block_size, self.shape, dtype
        with without_autocast(self.device.type):  # which knows concatenation, and not of every dtype
            return dequantize_4bit(self.codes, scales, *others, *how)

    def part(self, start: int, stop: int) -> tuple["QuantizedTensor", int]:
        """Elements `start` to `stop` in row-major order, a one-dimensional tensor in the same memory, and its start.

        It begins at a block (under double quantization: at one where a scale of scales begins), so perhaps earlier.
        """
        n, size = self.shape.numel(), self.block_size
        unit = size * (SCALE_BLOCK if self.double_quant else 1)
        first, last = start // unit * unit, min(n, -(-stop // size) * size)
        blocks = slice(first // size, -(-last // size))
        groups = slice(first // size // SCALE_BLOCK, -(-blocks.stop // SCALE_BLOCK))
        which = {"scale_offset": ..., "scale_scales": groups if self.double_quant else ...}
        stored = {name: tensor[which.get(name, blocks)] for name, tensor in self.stored.items()}
        codes, shape = self.codes[first // 2 : -(-last // 2)], torch.Size((last - first,))
        part = QuantizedTensor(codes, stored, shape, self.dtype, self.datatype, size, self.double_quant)
        return part, first

    def to(self, device: torch.device | str) -> "QuantizedTensor":
        """The same on another device; dtypes never change."""
        with torch.inference_mode(False):
            stored = {name: tensor.to(device) for name, tensor in self.stored.items()}
            codes = self.codes.to(device)
        return QuantizedTensor(codes, stored, self.shape, self.dtype, self.datatype, self.block_size, self.double_quant)

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, whole or not at all."""
        save_tensors(path, {"codes": self.codes, **self.stored}, self.description)

    @classmethod
    def load(cls, path: str | os.PathLike, device: str = "cpu") -> "QuantizedTensor":
        """Read what `save` wrote; every bit is the same.

        Raises:
            FileNotFoundError: no such file.
            ValueError: damaged, or not written by `QuantizedTensor.save`.
        """
        with torch.inference_mode(False):
            tensors, metadata = load_tensors(path, device)
        if metadata.get("format") != _FORMAT:
            raise ValueError(
                f"{path} was not written by QuantizedTensor.save (its format is {metadata.get('format')!r})"
            )
        try:
            datatype = _described_datatype(metadata)
            shape = torch.Size(int(n) for n in metadata["shape"].split(",") if n)
            block_size = int(metadata["block_size"])
            double_quant = {"0": False, "1": True}[metadata["double_quant"]]
            dtype = FLOAT_DTYPES[metadata["dtype"]]
            if any(n < 0 for n in shape):
                raise ValueError("a size below zero")
            check_options(datatype, block_size, double_quant)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged: its description {metadata} cannot be right ({error!r})") from error
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        expected = _layout(shape, datatype, block_size, double_quant)
        if found != expected:
            raise ValueError(f"{path} is damaged: it should hold {expected}, but holds {found}")
        loaded = cls(tensors.pop("codes"), tensors, shape, dtype, datatype.name, block_size, double_quant)
        for name, tensor in (tensors | {"scale_codes": loaded.scales}).items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{path} is damaged: {name} holds a NaN or an infinity, which no scale is")
        return loaded


def _described_datatype(description: dict[str, str]) -> DataType:
    """Raises ValueError where it is unknown, or another one of that name is known."""
    if "levels" not in description:
        return get_datatype(description.get("datatype"))
    levels, affine = json.loads(description["levels"]), {"0": False, "1": True}[description["affine"]]
    rule = json.loads(description.get("scaling", "{}"))
    return get_datatype(DataType(description["datatype"], tuple(levels), affine, **rule))


def as_record(description: dict[str, str]) -> torch.Tensor:
    """A description as bytes, uint8 (n,): the states of modules hold nothing but tensors."""
    content = json.dumps(description, sort_keys=True).encode()
    with torch.inference_mode(False):
        return torch.tensor(list(content), dtype=torch.uint8, device="cpu")


def read_record(record: torch.Tensor) -> dict[str, str] | None:
    """The description that `as_record` made bytes of; None where `record` is something else."""
    if record.dtype != torch.uint8 or record.ndim != 1:
        return None
    try:
        found = json.loads(bytes(record.tolist()).decode())
    except ValueError:
        return None
    return found if isinstance(found, dict) and "format" in found else None


def find_wrong_state(own: QuantizedTensor, stored_as: str, state: dict[str, torch.Tensor], place: str) -> str | None:
    """Why this part of a module's state is none of the tensor `own`, in a sentence; None where it is one.

    Args:
        stored_as: name in the state under which the weight stood before it was quantized, and the record stands now.
            States of earlier versions have none.
        state: by name, only what belongs to this tensor: the record, the codes and what holds the scales.
        place: of the tensor in its model.
    """
    record = state.get(stored_as)
    if record is not None and not record.is_meta and not isinstance(record, FakeTensor):
        theirs = read_record(record)
        if theirs is None:
            return (
                f"{place} is stored in 4 bits, but the state holds {record.dtype} {tuple(record.shape)} for its "
                "weight: load such a state before quantizing the model, or only what belongs to adapters"
            )
        ours = own.description
        different = [key for key in ours if key != "dtype" and theirs.get(key) != ours[key]]
        if different:
            said = " and ".join(f"{key} {theirs.get(key)!r}, not {ours[key]!r}" for key in different)
            return f"the state of {place} says of itself that it has {said}: quantize the model as it was then"
    found = {name: tensor for name, tensor in state.items() if name != stored_as}
    expected = {"codes": own.codes, **own.stored}
    if not found:
        return None
    if found.keys() != expected.keys():
        names = ", ".join(sorted(found))
        return f"the state of {place} holds {names}; its 4-bit weight is {', '.join(expected)} (double_quant differs?)"
    for name, tensor in expected.items():
        if found[name].dtype != tensor.dtype or found[name].numel() != tensor.numel():
            return (
                f"the state's {name} of {place} is {found[name].dtype} {tuple(found[name].shape)}, which has to be "
                f"{tensor.dtype} {tuple(tensor.shape)}: quantize the model as it was then, and cast no codes or scales"
            )
    return None


def _quantize_scales(scales: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(("scale_codes", "scale_scales", "scale_offset"), quantize_scales(scales), strict=True))


def _name_of_scales(datatype: DataType) -> str:
    """What scales are stored as, without double quantization."""
    return "scale_codes" if SCALES[datatype.scales] == torch.uint8 else "scales"


def _quantize_flat(flat: torch.Tensor, datatype: DataType, block_size: int, tensor_scale: torch.Tensor | None):
    """Whole blocks in one go (compiled if large), then the shorter last one."""
    n = flat.numel()
    whole = n - n % block_size
    parts = []
    if whole or not n:
        blocks, fast = flat[:whole].reshape(-1, block_size), None
        if kernels.knows(datatype) and compilation.wanted(flat, whole):
            source = blocks.float() if blocks.dtype == torch.float16 else blocks
            fast = kernels.quantize_blocks(source.contiguous(), datatype)
        if fast:
            parts.append((fast[0].view(-1), fast[1], None))
        elif n:
            codes, scales, offsets = quantize_blocks(blocks, datatype, tensor_scale)
            parts.append((pack_codes(codes).view(-1), scales, offsets))
        else:
            none = torch.empty(0, dtype=SCALES[datatype.scales], device=flat.device)
            return torch.empty(0, dtype=torch.uint8, device=flat.device), none, none if datatype.affine else None
    if n % block_size:
        codes, scales, offsets = quantize_blocks(flat[whole:][None], datatype, tensor_scale)
        codes = torch.nn.functional.pad(codes, (0, n % 2), value=datatype.zero_code)
        parts.append((pack_codes(codes).view(-1), scales, offsets))
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(column) if column[0] is not None else None for column in zip(*parts, strict=True))


def _layout(shape: torch.Size, datatype: DataType, block_size: int, double_quant: bool) -> dict[str, tuple]:
    """dtype and shape of every stored tensor, by name."""
    n = shape.numel()
    blocks = -(-n // block_size)
    layout = {"codes": (torch.uint8, (-(-n // 2),))}
    if double_quant:
        layout["scale_codes"] = (torch.uint8, (blocks,))
        layout["scale_scales"] = (torch.float32, (-(-blocks // SCALE_BLOCK),))
        layout["scale_offset"] = (torch.float32, ())
    else:
        layout[_name_of_scales(datatype)] = (SCALES[datatype.scales], (blocks,))
    if datatype.scales == "e4m3":
        layout["scale_scales"] = (torch.float32, (1,))
    if datatype.affine:
        layout["offsets"] = (SCALES[datatype.scales], (blocks,))
    return layout


def _check(weight, datatype: DataType, block_size: int | None, double_quant: bool) -> int:
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"quantize takes a torch tensor, not {type(weight).__name__}")
    if weight.dtype not in FLOAT_DTYPES.values():
        allowed = ", ".join(f"torch.{name}" for name in FLOAT_DTYPES)
        advice = "convert with .float()"
        if weight.dtype != torch.float64:  # .float() would take codes for weights
            advice = (
                "numbers of eight bits and fewer, and integers, mean nothing without the scales that lie beside them: "
                "dequantize with the library that made them, for a model of transformers model.dequantize(), or load "
                "the model in 16 or 32 bits"
            )
        raise TypeError(f"cannot quantize {weight.dtype}; the dtypes allowed are {allowed} ({advice})")
    if is_traceable_wrapper_subclass(weight):
        raise TypeError(
            f"cannot quantize a {type(weight).__name__}, which another library holds in a form of its own: "
            "dequantize or gather it with that library, or load the model in 16 or 32 bits"
        )
    if weight.layout != torch.strided or weight.is_meta:
        kind = "meta" if weight.is_meta else str(weight.layout)
        raise TypeError(f"quantize needs a dense tensor with values, not a {kind} one")
    return check_options(datatype, block_size, double_quant)


def check_options(datatype: DataType, block_size: int | None, double_quant: bool) -> int:
    """The block size: the one asked for, or where it is None the data type's usual one.

    Raises:
        ValueError: a block size or double quantization that the data type does not have.
    """
    own = datatype.block_size
    block_size = datatype.usual_block_size if block_size is None else block_size
    if own is not None and block_size != own:
        raise ValueError(
            f"block_size {block_size!r} is not {datatype.name}'s, whose blocks have {own} weights; give {own}"
        )
    if not is_count(block_size, least=16) or block_size > 4096 or block_size % 2:
        raise ValueError(f"block_size {block_size!r} is not allowed; give an even integer from 16 to 4096 (QLoRA: 64)")
    if double_quant and datatype.affine:
        raise ValueError(
            f"double quantization is for absmax scales; {datatype.name} stores a minimum beside each scale. "
            "Use nf4, fp4 or int4, or double_quant=False"
        )
    if double_quant and datatype.scales != "float32":
        bits = 8 * SCALES[datatype.scales].itemsize
        raise ValueError(
            f"double quantization is for scales in float32; {datatype.name} stores its scales in {bits} bits already. "
            "Use nf4, fp4 or int4, or double_quant=False"
        )
    return block_size


def _refuse_non_finite(weight: torch.Tensor, datatype: DataType) -> None:
    bad = (~weight.isfinite()).nonzero()
    if not len(bad) and datatype.scales == "float16":
        raise ValueError(
            f"a block's scale or minimum exceeds float16's largest number, 65504, and {datatype.name} stores it in "
            "float16; quantize with nf4, fp4 or int4, or scale the weight down"
        )
    if not len(bad):  # only a block's range can overflow then, or what a scale is rounded up to
        raise ValueError(
            "a block's largest weight minus its smallest exceeds float32's largest number; "
            "quantize with nf4, fp4 or int4, or scale the weight down"
        )
    index = tuple(bad[0].tolist())
    name = f"weight{list(index)}" if index else "the weight"
    raise ValueError(
        f"{name} is {weight[index].item()}: {len(bad)} of {weight.numel()} elements are NaN or infinite, "
        "and one would spoil its whole block; repair or replace them before quantizing"
    )
