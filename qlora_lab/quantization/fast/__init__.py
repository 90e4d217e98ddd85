"""The engine of `quantization`: the definitions of `blockwise` again, compiled, with the same bits.

`kernels` has the arithmetic, `triton_decoder` the way back in one launch on a GPU; `compilation` decides whether they
run, `operator` makes decoding an operator of PyTorch's.
"""
