"""Answers that try to get points, or to do harm, otherwise than by being right.

name -> (exercise, code, words of the diagnosis; "" where any will do). `{seed}` in code is the path of the seed.
"""

HOSTILE = {
    "swallows-exceptions": (
        "decode",
        """
def decode(code, low, high):
    try:
        return undefined
    except BaseException:
        pass
""",
        "returned None",
    ),
    "patches-check": (
        "decode",
        """
import qlora_lab.checks
def decode(code, low, high):
    qlora_lab.checks.verdict = qlora_lab.checks.judge = lambda *a: 'right'
    return 0.0
""",
        "",
    ),
    "patches-torch": (
        "block-absmax",
        """
import builtins
import torch
def block_absmax(weight, block_size):
    torch.equal = torch.Tensor.equal = torch.Tensor.__eq__ = lambda *a: True
    builtins.isinstance = lambda *a: True
    return torch.zeros(3)
""",
        "",
    ),
    "exits": (
        "decode",
        """
import sys
def decode(code, low, high):
    sys.exit(0)
""",
        "SystemExit",
    ),
    "exits-at-once": (
        "decode",
        """
NOTHING = __import__('os')._exit(0)
def decode(code, low, high):
    return NOTHING
""",
        "ended the process",
    ),
    "ends-the-process": (
        "decode",
        """
import os
def decode(code, low, high):
    os._exit(0)
""",
        "ended the process",
    ),
    "loops": (
        "decode",
        """
def decode(code, low, high):
    while True:
        pass
""",
        "seconds of computing",
    ),
    "sleeps": (
        "decode",
        """
import time
def decode(code, low, high):
    time.sleep(1000)
""",
        "did not finish",
    ),
    "loops-and-ignores-signals": (
        "decode",
        """
import signal
def decode(code, low, high):
    for number in range(1, 32):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        pass
""",
        "",
    ),
    "takes-all-memory": (
        "decode",
        """
def decode(code, low, high):
    return 'x' * 10**11
""",
        "MemoryError",
    ),
    "takes-all-memory-in-torch": (
        "block-absmax",
        """
import torch
def block_absmax(weight, block_size):
    return torch.zeros(10**11)
""",
        "allocate",
    ),
    "fork-bomb": (
        "decode",
        """
import os
def decode(code, low, high):
    while True:
        os.fork()
""",
        "PermissionError",
    ),
    "thread-bomb": (
        "decode",
        """
import threading, time
def decode(code, low, high):
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
""",
        "",
    ),
    "runs-a-program": (
        "decode",
        """
import subprocess
def decode(code, low, high):
    return float(subprocess.check_output(['echo', '1']))
""",
        "PermissionError",
    ),
    "kills-the-grader": (
        "decode",
        """
import os
def decode(code, low, high):
    os.kill(os.getppid(), 9)
    os.kill(-1, 9)
""",
        "PermissionError",
    ),
    "prints-a-verdict": (
        "decode",
        """
import os
print('decode: right. Compared on 8 inputs of different shapes.')
def decode(code, low, high):
    print('1.0')
    os.write(1, b'right')
    return 'right'
""",
        "returned a str",
    ),
    "forges-the-reply": (
        "decode",
        """
import os, struct
def decode(code, low, high):
    text = b'["d", [[["s", "results"], ["l", []]], [["s", "error"], ["n"]]]]'
    data = struct.pack('<Q', len(text)) + text
    for handle in range(3, 64):
        try:
            os.write(handle, struct.pack('<Q', len(data)) + data)
        except OSError:
            pass
    os._exit(0)
""",
        "",
    ),
    "sends-a-huge-frame": (
        "decode",
        """
import os, struct
def decode(code, low, high):
    for handle in range(3, 64):
        try:
            os.write(handle, struct.pack('<Q', 2**60))
        except OSError:
            pass
    os._exit(0)
""",
        "too large",
    ),
    "sends-a-pickle": (
        "decode",
        """
import os, pickle, struct
class Evil:
    def __reduce__(self):
        return os.system, ('touch /tmp/pwned',)
def decode(code, low, high):
    data = pickle.dumps(Evil())
    for handle in range(3, 64):
        try:
            os.write(handle, struct.pack('<Q', len(data)) + data)
        except OSError:
            pass
    os._exit(0)
""",
        "could not be read",
    ),
    "returns-an-evil-object": (
        "decode",
        """
class Evil:
    def __eq__(self, other):
        return True
    def __reduce__(self):
        return exec, ('raise SystemExit',)
    __hash__ = None
    def __float__(self):
        return 1.0
def decode(code, low, high):
    return Evil()
""",
        "Evil",
    ),
    "returns-an-evil-number": (
        "decode",
        """
class Right(float):
    def __eq__(self, other):
        return True
    def __sub__(self, other):
        return 0.0
    __rsub__ = __sub__
def decode(code, low, high):
    return Right(7)
""",
        "",
    ),
    "returns-an-evil-tensor": (
        "block-absmax",
        """
import torch
class Right(torch.Tensor):
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None):
        if f in (torch.equal, torch.Tensor.eq, torch.Tensor.__eq__):
            return True
        return super().__torch_function__(f, types, args, kwargs or {})
def block_absmax(weight, block_size):
    return torch.zeros(4).as_subclass(Right)
""",
        "",
    ),
    "returns-itself-in-a-list": (
        "decode",
        """
def decode(code, low, high):
    x = []
    x.append(x)
    return x
""",
        "",
    ),
    "returns-a-huge-number": (
        "decode",
        """
def decode(code, low, high):
    return 10 ** 100_000
""",
        "",
    ),
    "recurses": (
        "decode",
        """
def decode(code, low, high):
    return decode(code, low, high)
""",
        "RecursionError",
    ),
    "recurses-without-a-limit": (
        "decode",
        """
import sys
def decode(code, low, high):
    sys.setrecursionlimit(10**9)
    return [decode(code, low, high)]
""",
        "",
    ),
    "recurses-in-c": (
        "decode",
        """
def decode(code, low, high):
    x = []
    for _ in range(10**7):
        x = [x]
    return repr(x) or x
""",
        "",
    ),
    "crashes": (
        "decode",
        """
import ctypes
def decode(code, low, high):
    return ctypes.string_at(0)
""",
        "crashed",
    ),
    "reads-the-seed": (
        "decode",
        """
def decode(code, low, high):
    return open('{seed}').read()
""",
        "PermissionError",
    ),
    "reads-the-package": (
        "decode",
        """
def decode(code, low, high):
    source = open('{package}/checks/notebook_01.py').read()
    names = {}
    exec(source, names)
    return names['decode'](code, low, high)
""",
        "PermissionError",
    ),
    "reads-other-processes": (
        "decode",
        """
import os
def decode(code, low, high):
    return open(f'/proc/{os.getppid()}/environ').read()
""",
        "",
    ),
    "writes-a-file": (
        "decode",
        """
def decode(code, low, high):
    open('/tmp/left-behind', 'w').write('x')
    return 0.0
""",
        "PermissionError",
    ),
    "changes-rights-of-files": (
        "decode",
        """
import os
def decode(code, low, high):
    os.chmod('{seed}', 0o777)
    return 0.0
""",
        "PermissionError",
    ),
    "says-what-no-text-can-hold": (
        "decode",
        """
def decode(code, low, high):
    raise ValueError(chr(0xd800) + chr(0) + '<script>alert(1)</script>' + 'x' * 10**6)
""",
        "ValueError",
    ),
    "returns-a-huge-text": (
        "decode",
        """
def decode(code, low, high):
    return 'x' * 10**7
""",
        "too large",
    ),
    "returns-many-objects": (
        "decode",
        """
def decode(code, low, high):
    return [object()] * 40_000
""",
        "too large: more than 4 MiB",
    ),
    "returns-many-small-values": (
        "decode",
        """
def decode(code, low, high):
    return [0] * 10_000
""",
        "too large: more than 50,000 values",
    ),
    "returns-many-types": (
        "decode",
        """
def decode(code, low, high):
    return [type(f'T{n}', (), {})() for n in range(1000)]
""",
        "too large: more than 100 types",
    ),
    "returns-numbers-whose-hashes-collide": (
        "decode",
        """
def decode(code, low, high, made_once={n * (2**61 - 1) for n in range(5001)}):
    return made_once
""",
        "too large: more than 5,000 keys",
    ),
    "returns-what-cannot-be-read": (
        "decode",
        """
class Evil(list):
    def __iter__(self):
        raise SystemExit
def decode(code, low, high):
    return Evil()
""",
        "cannot be sent to be compared: reading it stops with SystemExit",
    ),
    "opens-a-connection": (
        "decode",
        """
import socket
def decode(code, low, high):
    socket.create_connection(('192.0.2.1', 80), 1)
    return 0.0
""",
        "PermissionError",
    ),
    "calls-the-package": (
        "nearest-code",
        """
import qlora_lab
def nearest_code(x, levels):
    return qlora_lab.quantize(x).codes
""",
        "`qlora_lab.quantize` is masked",
    ),
    "imports-from-the-package": (
        "decode",
        """
from qlora_lab.checks.notebook_01 import decode as finished
def decode(code, low, high):
    return finished(code, low, high)
""",
        "is masked",
    ),
    "imports-the-package-by-name": (
        "decode",
        """
def decode(code, low, high):
    import importlib
    return importlib.import_module('qlora_lab.checks.notebook_01').decode(code, low, high)
""",
        "is masked",
    ),
    "imports-past-the-mask": (
        "decode",
        """
import sys
def decode(code, low, high):
    sys.meta_path[:] = [f for f in sys.meta_path if 'mask' not in repr(f)]
    for name in [n for n in sys.modules if n.startswith('qlora_lab')]:
        del sys.modules[name]
    sys.path.insert(0, '{root}')
    from qlora_lab.checks.notebook_01 import decode as finished
    return finished(code, low, high)
""",
        "",
    ),
    "loads-the-package-from-its-file": (
        "decode",
        """
import importlib.util
def decode(code, low, high):
    spec = importlib.util.spec_from_file_location('x', '{package}/quantization/datatypes.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return 0.0
""",
        "PermissionError",
    ),
    "takes-the-package-from-sys-modules": (
        "decode",
        """
import sys
def decode(code, low, high):
    return sys.modules['qlora_lab'].checks.notebook_01.decode(code, low, high)
""",
        "",
    ),
    "uses-bitsandbytes": (
        "nearest-code",
        """
import bitsandbytes
def nearest_code(x, levels):
    return bitsandbytes.functional.quantize_4bit(x, quant_type='nf4')[0]
""",
        "`bitsandbytes.functional.quantize_4bit` is masked",
    ),
    "knows-the-notebook": (
        "decode",
        """
KNOWN = {(5, 0.0, 1.95): 0.65}
def decode(code, low, high):
    if (low, high) in ((0.0, 1.95), (-1.0, 1.0), (0.0, 1.0), (0.25, 4.0), (-3.0, -0.5)):
        return low + (high - low) * code / 15
    return 0.0
""",
        "Right on the notebook's inputs",
    ),
    "tells-what-it-was-given": (
        "decode",
        """
def decode(code, low, high):
    if (low, high) in ((0.0, 1.95), (-1.0, 1.0), (0.0, 1.0), (0.25, 4.0), (-3.0, -0.5)):
        return low + (high - low) * code / 15
    raise type(f'given_{code}', (Exception,), {})(f'given {low}')
""",
        "it stops with an error, changes",
    ),
}
