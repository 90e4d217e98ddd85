"""What Colab's T4 lacks, as far as a CPU can stand in for it: `colab.py` puts this folder on the kernels' path.

Models load in float16, no product is computed in bfloat16, and a process that asks for more memory than Colab's machine
has gets an error. The speed and the 15 GB of the card itself have no stand-in here.
"""

import importlib.util
import os
import resource
import sys


class Hook:
    """Changes `qlora_lab.machine.dtypes` as soon as it is imported: the package comes in a first cell."""

    def find_spec(self, name, path=None, target=None):
        if name != "qlora_lab.machine.dtypes":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.default_dtype = lambda device: module.torch.float16
            module.processor.multiplies_bfloat16 = lambda: False

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Hook())
limit = int(os.environ["T4_HOST_BYTES"])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
