"""Wrong answers to the exercise of notebook 00."""

from wrong_answers import wrong


@wrong("weights-in-gb", says="gigabits")
def gigabits(parameters, bits):
    return parameters * bits / 1e9


@wrong("weights-in-gb", says="These are bytes")
def plain_bytes(parameters, bits):
    return parameters * (bits / 8)


@wrong("weights-in-gb", says="GiB")
def binary_units(parameters, bits):
    return parameters * bits / 8 / 1024**3


@wrong("weights-in-gb", says="rounded to a whole number")
def whole_bits(parameters, bits):
    return parameters * int(bits + 0.5) / 8e9


@wrong("weights-in-gb", says="you multiply")
def turned(parameters, bits):
    return parameters * bits * 8 * 1e-9


@wrong("weights-in-gb", says="`/` keeps what `//` drops")
def whole_bytes(parameters, bits):
    return parameters * bits // 8 / 10**9


@wrong("weights-in-gb", says="rounded to a whole number")
def bits_rounded_up(parameters, bits):
    return parameters * -(-bits // 1) / 8 / 10**9


@wrong("weights-in-gb", says="These are MB, 10^6 bytes each")
def megabytes(parameters, bits):
    return parameters * bits / 8 / 10**6


@wrong("weights-in-gb", says="`^` is no power")
def caret_for_a_power(parameters, bits):
    return parameters * bits / 8 / (10 ^ 9)
