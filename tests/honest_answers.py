"""Answers that use more of Python, numpy and torch than most do, and must work in the sandbox.

name -> code of a function `f` that returns True. With the solutions, wrong and hostile answers they are what
`tests/machines/traced_calls.py` traces to find out which system calls an answer needs.
"""

HONEST = {
    "linear-algebra": """
import torch
def f():
    a = torch.randn(300, 300, dtype=torch.float64)
    u, s, v = torch.linalg.svd(a)
    q, r = torch.linalg.qr(a)
    torch.linalg.eigh(a @ a.T), torch.linalg.solve(a, a), torch.linalg.inv(a), torch.fft.fft(a), torch.cov(a)
    return torch.allclose(u * s @ v, a) and torch.allclose(q @ r, a)
""",
    "numpy": """
import numpy as np
def f():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(400, 400))
    np.random.seed(1); np.random.rand(3); np.sort(a, axis=0); np.fft.fft2(a); np.einsum('ij,jk->ik', a, a)
    u, s, v = np.linalg.svd(a)
    return bool(np.allclose(u * s @ v, a)) and int(np.histogram(a, 10)[0].sum()) == 160000
""",
    "numpy-and-torch": """
import numpy as np, torch
def f():
    a = torch.arange(6.0)
    b = a.numpy(); b[0] = 7
    return a[0].item() == 7 and torch.from_numpy(np.ones(3)).sum().item() == 3
""",
    "trains-a-network": """
import torch
from torch import nn
def f():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 4))
    optimizers = [torch.optim.AdamW(model.parameters()), torch.optim.SGD(model.parameters(), lr=0.1)]
    for optimizer in optimizers:
        loss = nn.functional.cross_entropy(model(torch.randn(32, 8)), torch.randint(4, (32,)))
        optimizer.zero_grad(); loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3).step()
    return bool(loss > 0)
""",
    "layers-of-all-kinds": """
import torch
from torch import nn
def f():
    x = torch.randn(2, 8, 32)
    nn.Conv1d(8, 4, 3)(x), nn.Conv2d(2, 3, 3)(torch.randn(1, 2, 9, 9)), nn.LSTM(32, 8)(x), nn.GRU(32, 8)(x)
    layer = nn.TransformerEncoderLayer(32, 4, batch_first=True)
    layer(x).sum().backward(); layer.eval()(x)
    nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    nn.MaxPool1d(2)(x), nn.BatchNorm1d(8)(x), nn.Embedding(5, 3)(torch.tensor([1, 2]))
    return True
""",
    "small-data-types": """
import torch
def f():
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        a = torch.randn(64, 64).to(dtype).to(torch.bfloat16)
        a @ a, a.sum(), a.softmax(-1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.nn.Linear(64, 64)(torch.randn(128, 64)).sum().backward()
    q = torch.quantize_per_tensor(torch.randn(8), 0.1, 0, torch.qint8)
    torch.randint(0, 15, (8,), dtype=torch.uint8).bitwise_left_shift(4)
    return q.dequantize().shape == (8,)
""",
    "several-threads-of-torch": """
import torch
def f():
    torch.set_num_threads(4)
    a = torch.randn(700, 700)
    return torch.allclose(a @ a, (a.double() @ a.double()).float(), atol=1e-2) and torch.exp(a).sum().item() > 0
""",
    "threads": """
import threading, queue, time
from concurrent.futures import ThreadPoolExecutor
def f():
    with ThreadPoolExecutor(8) as pool:
        total = sum(pool.map(lambda x: x * x, range(100)))
    q, event = queue.Queue(), threading.Event()
    t = threading.Thread(target=lambda: (event.wait(0.01), time.sleep(0.01), q.put(1)))
    t.start(); timer = threading.Timer(0.01, event.set); timer.start(); timer.join(); t.join()
    lock = threading.RLock()
    with lock, threading.Condition(): pass
    return total == 328350 and q.get(timeout=1) == 1
""",
    "asks-a-pool-for-gradients": """
import torch
from concurrent.futures import ThreadPoolExecutor
def f():
    def one(n):
        w = torch.ones(50, 50, requires_grad=True)
        (w @ w * n).sum().backward()
        return w.grad.sum().item()
    with ThreadPoolExecutor(4) as pool:
        return len(list(pool.map(one, range(8)))) == 8
""",
    "functional": """
import torch
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils.checkpoint import checkpoint
def f():
    x = torch.randn(4, requires_grad=True)
    vmap(grad(lambda v: (v * v).sum()))(torch.randn(3, 4)), jacrev(torch.sin)(x)
    torch.autograd.functional.hessian(lambda v: (v ** 3).sum(), x)
    checkpoint(lambda v: v * 2, x, use_reentrant=False).sum().backward()
    torch.autograd.gradcheck(torch.sin, torch.randn(3, dtype=torch.float64, requires_grad=True))
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v): return v * 2
        @staticmethod
        def backward(ctx, g): return g * 2
    Twice.apply(x).sum().backward()
    return True
""",
    "compiled": """
import torch
@torch.compile
def twice(x):
    return 2 * x
@torch.compile(dynamic=True, mode='reduce-overhead')
def thrice(x):
    return 3 * x
def f():
    model = torch.compile(torch.nn.Linear(2, 2), fullgraph=True)
    assert thrice(torch.ones(1)).item() == 3 and len(model(torch.ones(2))) == 2
    return twice(torch.ones(3)).sum().item() == 6
""",
    "compiled-in-place": """
import torch
def f():
    model = torch.nn.Linear(2, 2)
    model.compile()
    return model(torch.ones(2)).shape == (2,)
""",
    "scripted": """
import torch
@torch.jit.script
def twice(x):
    return 2 * x
def f():
    traced = torch.jit.trace(lambda x: x + 1, torch.ones(2))
    return twice(torch.ones(3)).sum().item() == 6 and traced(torch.ones(2)).sum().item() == 4
""",
    "asks-for-its-source": """
import inspect
def g():
    return 1
def f():
    return 'return 1' in inspect.getsource(g)
""",
    "loads-data": """
import io, torch
from torch.utils.data import DataLoader, TensorDataset
def f():
    data = DataLoader(TensorDataset(torch.arange(10.0)), batch_size=3, shuffle=True)
    file = io.BytesIO()
    torch.save({'x': torch.ones(3)}, file); file.seek(0)
    return sum(b.sum().item() for (b,) in data) == 45 and torch.load(file)['x'].sum().item() == 3
""",
    "random-numbers": """
import os, random, secrets, uuid
import torch
def f():
    random.seed(); secrets.token_bytes(8); uuid.uuid4(); os.urandom(8); torch.seed(); torch.Generator().seed()
    torch.multinomial(torch.ones(4), 2), torch.randperm(9), torch.bernoulli(torch.full((3,), 0.5))
    return 0 <= random.random() < 1
""",
    "time-and-date": """
import datetime, time, timeit, calendar
def f():
    time.localtime(), time.strftime('%c'), datetime.datetime.now().astimezone(), time.process_time(), time.thread_time()
    time.get_clock_info('monotonic'), time.clock_gettime(0), time.clock_getres(1), time.ctime(), time.tzname
    timeit.timeit(lambda: 1, number=10); time.sleep(0.001)
    return time.perf_counter_ns() > 0
""",
    "prints": """
import logging, sys, warnings, pprint, contextlib, io
def f():
    print('x', flush=True); print('y', file=sys.stderr); sys.stdout.write('z'); sys.stdout.flush()
    logging.basicConfig(); logging.getLogger(__name__).warning('w'); warnings.warn('v'); pprint.pprint({1: 2})
    with contextlib.redirect_stdout(io.StringIO()) as text:
        print('inside')
    sys.stdin.read()
    return text.getvalue() == 'inside\\n'
""",
    "standard-library": """
import abc, array, ast, base64, bisect, bz2, cmath, collections, colorsys, copy, csv, dataclasses, decimal, difflib, dis
import enum, fractions, functools, gc, hashlib, heapq, hmac, html, inspect, io, itertools, json, keyword, locale, lzma
import math, mmap, numbers, operator, os, pathlib, pickle, platform, re, shelve, shutil, signal, socket, sqlite3
import statistics, string, struct, subprocess, tempfile, textwrap, traceback, types, typing, unittest, weakref, zipfile
import zlib, asyncio, multiprocessing, ctypes, argparse, configparser, email, glob, http, queue, random, sched, select
import selectors, ssl, symtable, sysconfig, threading, tokenize, tracemalloc, urllib.request, xml.dom, contextvars
def f():
    decimal.getcontext().prec = 50
    assert decimal.Decimal(2).sqrt() > 1 and fractions.Fraction(1, 3) * 3 == 1
    zlib.decompress(zlib.compress(b'x')), bz2.compress(b'x'), lzma.compress(b'x'), hashlib.sha256(b'x').digest()
    hashlib.scrypt(b'x', salt=b'y', n=2, r=1, p=1), pickle.loads(pickle.dumps({1: 2})), json.loads('[1]')
    with sqlite3.connect(':memory:') as db:
        assert db.execute('select 1 + 1').fetchone() == (2,)
    memory = mmap.mmap(-1, 8192); memory[:2] = b'ab'; memory.close()
    gc.collect(), gc.get_objects(), dis.dis(f, file=io.StringIO()), locale.getlocale(), re.match('a', 'a')
    return copy.deepcopy([1]) == [1]
""",
    "looks-around": """
import glob, json, os, pathlib, platform, resource, shutil, sys, threading
def f():
    os.getpid(), os.getppid(), os.getuid(), os.cpu_count(), os.environ.get('HOME'), os.getcwd(), sys.getsizeof([])
    platform.uname(), platform.python_version(), resource.getrusage(resource.RUSAGE_SELF), os.times(), os.getloadavg()
    os.path.exists('/tmp/data.csv'), pathlib.Path('data').exists(), glob.glob('*.pt'), shutil.which('ls')
    os.path.isdir('/usr/lib'), os.listdir(os.path.dirname(json.__file__))
    threading.get_native_id(), os.sched_getaffinity(0)
    sys.getrecursionlimit(), os.isatty(1), os.get_terminal_size, os.umask
    return os.path.getsize(os.__file__) > 0
""",
    "finds-out-what-torch-is": """
import torch
def f():
    torch.__config__.show(), torch.__config__.parallel_info(), torch.cuda.is_available(), torch.get_num_threads()
    torch.backends.mkldnn.is_available(), torch.backends.mps.is_available(), torch.cuda.device_count()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.set_default_dtype(torch.float64); torch.set_printoptions(precision=2); torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True)
    return repr(torch.ones(2, device=device)) is not None
""",
    "profiles": """
import cProfile, io, pstats, tracemalloc, sys, torch
def f():
    tracemalloc.start(); [0] * 1000; tracemalloc.stop()
    profile = cProfile.Profile(); profile.runcall(sum, [1]); pstats.Stats(profile, stream=io.StringIO()).print_stats()
    sys.settrace(lambda *a: None); sys.settrace(None)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        torch.ones(3).sum()
    return len(seen.events()) > 0
""",
    "calls-c": """
import ctypes
def f():
    libc = ctypes.CDLL(None)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    numbers = (ctypes.c_int * 3)(3, 1, 2)
    libc.qsort(numbers, 3, ctypes.sizeof(ctypes.c_int), compare(lambda a, b: a[0] - b[0]))
    return list(numbers) == [1, 2, 3]
""",
    "much-memory": """
import torch
def f():
    parts = [bytearray(2**22) for _ in range(20)] + [torch.ones(2**20) for _ in range(20)]
    del parts[::2]
    x = torch.zeros(2**24); x.resize_(2**25); x.fill_(1)
    return sum(len(p) for p in parts) > 0 and x.sum().item() == 2**25
""",
    "recurses-deeply": """
import sys, threading
def f():
    sys.setrecursionlimit(20_000)
    threading.stack_size(2**27)
    found = []
    def depth(n):
        return 0 if n == 0 else 1 + depth(n - 1)
    t = threading.Thread(target=lambda: found.append(depth(15_000))); t.start(); t.join()
    return found == [15_000]
""",
    "signals-of-its-own": """
import faulthandler, signal, warnings
def f():
    signal.getsignal(signal.SIGINT); signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [])
    faulthandler.enable(open('/dev/null', 'w')); faulthandler.disable()
    return True
""",
    "symbols": """
import sympy
def f():
    x = sympy.symbols('x')
    return sympy.solve(x**2 - 4, x) == [-2, 2] and sympy.integrate(x, x) == x**2 / 2
""",
    "reads-null-and-random": """
import contextlib, os
def f():
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        print('x')
    return len(open('/dev/urandom', 'rb').read(4)) == 4 and open('/dev/zero', 'rb').read(2) == bytes(2)
""",
    "waits": """
import select, time, threading
def f():
    select.select([], [], [], 0.001); select.poll().poll(1)
    threading.Event().wait(0.001), threading.Lock().acquire(timeout=0.1)
    return True
""",
}
