"""The engine of `quantization`: the definitions of `blockwise` again, compiled, with the same bits.

`kernels` has the arithmetic, `compilation` decides whether and how it is compiled, `operator` makes decoding an
operator of PyTorch's.
"""
