"""Notebooks 01, 02 and 10: weights in four bits.

Read `datatypes` (where the sixteen levels come from), `blockwise` (codes and scales of blocks: the definitions), then
`tensor` (`quantize`, and the tensor it gives). `calibrated` finds better codes for weights whose inputs are known.
`parameters` puts such tensors into modules, `undecoded` makes them tensors that other people's code computes with.
`fast` computes the same bits sooner and can be skipped; `set_compile` says when it does, `path_taken` whether it did.
"""

from qlora_lab.quantization.datatypes import DATATYPES, SINCE_NF4, DataType, dynamic_map, fit_bof4, get_datatype
from qlora_lab.quantization.fast.compilation import path_taken, set_compile
from qlora_lab.quantization.tensor import QuantizedTensor, quantize

__all__ = [
    "DATATYPES",
    "SINCE_NF4",
    "DataType",
    "QuantizedTensor",
    "dynamic_map",
    "fit_bof4",
    "get_datatype",
    "path_taken",
    "quantize",
    "set_compile",
]
