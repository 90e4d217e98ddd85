"""What the computer is and has, and the few things one asks it for. No subject of a notebook; skip it.

`environment` describes it, and says which device to take. `processor`, `matmul`, `dtypes` and `huge_pages` are about
computing fast, `stopwatch` about comparing how fast, `generators` about random numbers, `free_memory` about room,
`files` about writing whole or not at all, `processes` about several at once, which `launch` starts from a notebook.
`arguments` says what is wrong with a setting, `errors` which errors are told in a line.
"""

from qlora_lab.machine.environment import default_device, describe, device_name, versions
from qlora_lab.machine.free_memory import own_memory
from qlora_lab.machine.launch import together, torchrun
from qlora_lab.machine.stopwatch import seconds_of

__all__ = [
    "default_device",
    "describe",
    "device_name",
    "own_memory",
    "seconds_of",
    "together",
    "torchrun",
    "versions",
]
