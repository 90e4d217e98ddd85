"""Answers that try to get points, or to do harm, otherwise than by being right.

name -> (exercise, code, words of the diagnosis; "" where any will do). `{seed}` in code is the path of the seed.
"""

import platform

from qlora_lab.classroom.inside.system_calls import ALLOWED, CLONE, FACES, SIGACTION, numbers

# Of answers below that call the kernel by numbers: those that are always refused.
MACHINE = platform.machine()
NUMBERS = {name: n for row in FACES for name, n in numbers(row, MACHINE).items()}
MAY = {*numbers(ALLOWED, MACHINE).values(), *NUMBERS.values(), CLONE[MACHINE], SIGACTION[MACHINE]}
MAY |= (
    {335, 336} if MACHINE == "x86_64" else set()
)  # uretprobe, uprobe: the kernel asks no filter, and ends who calls them
CALLS = """
import ctypes, errno
LIBC = ctypes.CDLL(None, use_errno=True)
def refused(number, *arguments):
    given = LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    return given == -1 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS)
def tell(through):
    if not through:
        raise PermissionError('all of them')
    return f'got through: {through}'
"""

SEND = """
import os, stat, struct
def send(data):
    (socket,) = [n for n in range(3, 64) if is_socket(n)]
    os.write(socket, struct.pack('<Q', len(data)) + data)
def is_socket(handle):
    try:
        return stat.S_ISSOCK(os.fstat(handle).st_mode)
    except OSError:
        return False
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
    "sends-signals-by-owning-files": (
        "decode",
        CALLS
        + f"""
import os
FCNTL, IOCTL, PRCTL = {NUMBERS["fcntl"]}, {NUMBERS["ioctl"]}, {NUMBERS["prctl"]}
"""
        + """
def decode(code, low, high):
    one, folder = os.getppid(), os.open(os.path.dirname(os.__file__) + '/json', os.O_RDONLY)
    owner = ctypes.addressof(ctypes.create_string_buffer((1).to_bytes(4, 'little') + one.to_bytes(4, 'little')))
    number = ctypes.addressof(ctypes.c_int(one))
    through = []
    for handle in (*range(8), folder):
        for what, value in ((8, one), (8, -1), (10, 9), (15, owner), (4, 0x2000), (1024, 0), (1026, 0x8000003F)):
            if not refused(FCNTL, handle, what, value):
                through.append(('fcntl', handle, what))
        for what in (0x8901, 0x8902, 0x5452, 0x540F, 0x5410, 0x5412):
            if not refused(IOCTL, handle, what, number):
                through.append(('ioctl', handle, what))
    for what in (1, 4, 22, 35, 38, 0x59616D61):
        if not refused(PRCTL, what, 9, 0, 0, 0):
            through.append(('prctl', what))
    return tell(through)
""",
        "PermissionError in `raise PermissionError('all of them')`",
    ),
    "makes-every-system-call": (
        "decode",
        CALLS
        + f"MAY = {MAY}\n"
        + """
def decode(code, low, high):
    return tell([n for n in range(1000) if n not in MAY and not refused(n, 0, 0, 0, 0, 0, 0)])
""",
        "PermissionError in `raise PermissionError('all of them')`",
    ),
    "forks-by-number": (
        "decode",
        CALLS
        + f"CLONE = {CLONE[MACHINE]}\n"
        + """
def decode(code, low, high):
    # A child of one's own; beside the parent; sharing all memory; in namespaces; a thread that is traced.
    flags = (17, 0x8000, 0x4111, 0x10000000, 0x20000011, 0x3D2F00, 0x10003D0F00)
    return tell([flag for flag in flags if not refused(CLONE, flag, 0, 0, 0, 0) and flag != 0x10003D0F00])
""",
        "",
    ),
    "calls-the-kernel-as-another-machine": (
        "decode",
        """
import ctypes, mmap, platform
def decode(code, low, high):
    if platform.machine() != 'x86_64':
        return ctypes.string_at(0)
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(bytes.fromhex('b814000000cd80c3'))  # getpid by `int 0x80`
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
""",
        "crashed Python",
    ),
    "calls-the-kernel-by-other-numbers": (
        "decode",
        """
import ctypes
def decode(code, low, high):
    return ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 + 62), 0, 9)
""",
        "crashed Python",
    ),
    "aborts": (
        "decode",
        """
import os
def decode(code, low, high):
    os.abort()
""",
        "crashed Python",
    ),
    "signals-itself": (
        "decode",
        """
import os, signal
def decode(code, low, high):
    for number in signal.valid_signals():
        for send in (lambda n: os.kill(os.getpid(), n), signal.raise_signal):
            try:
                send(number)
                return f'sent {number}'
            except PermissionError as error:
                last = error
    raise last
""",
        "PermissionError",
    ),
    "handles-the-signal-of-its-limit": (
        "decode",
        """
import signal
def decode(code, low, high):
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
""",
        "PermissionError",
    ),
    "blocks-the-signal-of-its-limit": (
        "decode",
        """
import signal
def decode(code, low, high):
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        pass
""",
        "seconds of computing",
    ),
    "loops-in-many-threads": (
        "decode",
        """
import threading
def loop():
    while True:
        pass
def decode(code, low, high):
    for _ in range(3):
        threading.Thread(target=loop).start()
    loop()
""",
        "seconds of computing",
    ),
    "loops-while-it-is-defined": (
        "decode",
        """
while True:
    NUMBER = 1
def decode(code, low, high):
    return NUMBER
""",
        "",
    ),
    "lets-go-of-the-grader-and-goes-on": (
        "decode",
        """
import os, time
def decode(code, low, high):
    os.closerange(0, 64)
    time.sleep(1000)
""",
        "ended the process",
    ),
    "looks-for-descriptors": (
        "decode",
        """
import os, stat
def decode(code, low, high):
    found = []
    for handle in range(1024):
        try:
            found.append(stat.S_IFMT(os.fstat(handle).st_mode))
        except OSError:
            pass
    if sorted(found) == sorted([stat.S_IFCHR] * 3 + [stat.S_IFSOCK]):
        raise LookupError('nothing but one socket')
    return str(found)
""",
        "LookupError",
    ),
    "looks-through-proc": (
        "decode",
        """
import os
def decode(code, low, high):
    one = os.getppid()
    for path in ('/proc', '/proc/self/mem', '/proc/self/maps', '/proc/self/fd', f'/proc/{one}/mem', '/proc/1/root',
                 f'/proc/{one}/environ', '/proc/self/task', '/sys', '/dev/shm', '/tmp', '/', '/etc', '/home', '/root'):
        for look in (os.listdir, lambda p: open(p, 'rb').read(1), lambda p: open(p, 'r+b')):
            try:
                return f'{path}: {look(path)}'
            except OSError as error:
                last = error
    raise PermissionError('everywhere')
""",
        "PermissionError in `raise PermissionError('everywhere')`",
    ),
    "sees-other-processes": (
        "decode",
        CALLS
        + f"PROCESSES = {[numbers(ALLOWED, MACHINE)[name] for name in ('getppid', 'sched_getaffinity')]}\n"
        + """
def decode(code, low, high):
    buffer = ctypes.create_string_buffer(1024)
    own = [n for n in range(1, 300_000) if LIBC.syscall(PROCESSES[1], n, 1024, buffer) >= 0]
    raise LookupError(f'{len(own)} processes and threads')
""",
        "",
    ),
    "shares-memory": (
        "decode",
        """
from multiprocessing import shared_memory
def decode(code, low, high):
    return shared_memory.SharedMemory(name='qlora-lab-hostile', create=True, size=4096).name
""",
        "PermissionError",
    ),
    "sends-a-tensor-through-shared-memory": (
        "block-absmax",
        """
import torch
def block_absmax(weight, block_size):
    return torch.ones(4).share_memory_()
""",
        "RuntimeError",
    ),
    "looks-for-the-checker": (
        "decode",
        """
import gc, sys
WORDS = ('misconception', 'expected', 'verdict', 'solution')
def decode(code, low, high):
    real = [name for name, module in sys.modules.items() if type(module).__name__ == 'module']  # no stand-in
    found = [name for name in real if name.split('.')[0] == 'qlora_lab' or 'checks' in name.split('.')]
    frame = sys._getframe(1)  # around it; what is in the notebook itself is the student's own
    while frame is not None:
        names = (*frame.f_locals, *frame.f_globals)
        found += [name for name in names if any(word in name.lower() for word in WORDS)]
        frame = frame.f_back
    for thing in gc.get_objects():
        name = getattr(type(thing), '__qualname__', '')
        if name in ('Exercise', 'Misconception', 'HiddenTests', 'Case', 'Verdict'):
            found.append(name)
    if not found:
        raise LookupError('nothing here')
    return str(found)
""",
        "LookupError",
    ),
    "changes-its-results-afterwards": (
        "decode",
        """
import sys
def decode(code, low, high):
    frame = sys._getframe(1)
    frame.f_locals['results'][:] = [0.65] * 100
    frame.f_locals['self'].call = lambda data: {'results': [0.65] * 8, 'error': None, 'failures': []}
    return 0.65
""",
        "",
    ),
    "answers-before-it-is-asked": (
        "decode",
        SEND
        + """
import sys
def decode(code, low, high, calls=[]):
    right = low + (high - low) * code / 15
    calls.append(right)
    if len(calls) == 16:  # the notebook's inputs: one reply to these, and one to what comes next
        data = sys.modules['inside.values'].pack({'results': calls, 'error': None, 'failures': []})
        send(data)
    return right if len(calls) <= 16 else 0.0
""",
        "but on others it stops",
    ),
    "sends-deep-json": (
        "decode",
        SEND
        + """
def decode(code, low, high):
    text = b'[' * 49_000 + b']' * 49_000
    data = struct.pack('<Q', len(text)) + text
    send(data)
    os._exit(0)
""",
        "could not be read",
    ),
    "sends-tensors-that-are-none": (
        "decode",
        SEND
        + """
import json
def decode(code, low, high):
    text = b'["d", [[["s", "results"], ["l", [["t", "a"]]]], [["s", "error"], ["n"]]]]'
    head = json.dumps({'a': {'dtype': 'F32', 'shape': [2**62, 4, 0], 'data_offsets': [0, 0]}}).encode()
    data = struct.pack('<Q', len(text)) + text + struct.pack('<Q', len(head)) + head
    send(data)
    os._exit(0)
""",
        "",
    ),
    "returns-a-tensor-of-no-size": (
        "block-absmax",
        """
import torch
def block_absmax(weight, block_size):
    return torch.empty(0, 2**40)
""",
        "",
    ),
    "returns-tensors-of-other-kinds": (
        "block-absmax",
        """
import torch
def block_absmax(weight, block_size, calls=[]):
    calls.append(0)
    dtypes = (torch.complex64, torch.float8_e5m2, torch.bool, torch.uint16, torch.int64)
    return torch.full((4,), 1).to(dtypes[len(calls) % 5])
""",
        "",
    ),
    "fills-its-memory-page-by-page": (
        "decode",
        """
import mmap
def decode(code, low, high, kept=[]):
    while True:
        kept.append(mmap.mmap(-1, 2**26))
        kept[-1][::4096] = b'x' * (2**26 // 4096)
""",
        "",
    ),
    "fills-the-table-of-files": (
        "decode",
        """
def decode(code, low, high, kept=[]):
    while True:
        kept.append(open('/dev/null'))
""",
        "Too many open files",
    ),
    "leaves-something-for-the-next": (
        "decode",
        """
import builtins, gc, json, os, signal, struct, sys, torch
def decode(code, low, high):
    torch.equal = torch.save = json.dumps = json.loads = struct.pack = builtins.len = builtins.sorted = None
    sys.modules.clear(); gc.disable(); os.environ.clear(); torch.set_default_dtype(torch.float64)
    signal.signal(signal.SIGTERM, signal.SIG_IGN); torch.manual_seed(0); sys.setrecursionlimit(50)
    return 0.0
""",
        "",
    ),
    "writes-where-torch-lies": (
        "decode",
        """
import os, torch
def decode(code, low, high):
    for change in (lambda p: open(p, 'a'), lambda p: os.truncate(p, 0), os.unlink, lambda p: os.rename(p, p + 'x'),
                   lambda p: os.link(p, p + 'y'), lambda p: os.symlink(p, p + 'z'), lambda p: os.mkdir(p + 'd'),
                   lambda p: os.mkfifo(p + 'f'), lambda p: os.chmod(p, 0), lambda p: os.utime(p)):
        try:
            change(torch.__file__)
            return 'changed'
        except PermissionError as error:
            last = error
    raise last
""",
        "PermissionError",
    ),
    "looks-busy-when-it-is-looked-at": (
        "decode",
        """
import time
BEGAN = time.monotonic()
def decode(code, low, high):
    turn = 0
    while True:
        turn += 0.5
        time.sleep(max(0, BEGAN + turn - time.monotonic()))
        end = time.monotonic() + 0.005
        while time.monotonic() < end:
            pass
""",
        "",
    ),
    "names-a-large-tensor-many-times": (
        "decode",
        SEND
        + """
import json
def decode(code, low, high):
    text = json.dumps(["d", [[["s", "results"], ["l", [["t", "a"]] * 40_000]], [["s", "error"], ["n"]]]]).encode()
    head = json.dumps({"a": {"dtype": "U8", "shape": [2] * 21, "data_offsets": [0, 2**21]}}).encode()
    send(struct.pack("<Q", len(text)) + text + struct.pack("<Q", len(head)) + head + bytes(2**21))
    os._exit(0)
""",
        "could not be read",
    ),
}
