"""Programs that try to pass without being right, to break out, or to leave something behind; one table, `HOSTILE`.

Each defines `f`, which the test calls with 2, 3 and 5 and whose squares it wants.  What a program attains it returns as
text, so that the failed assertion shows it.  Knows nothing of the sandbox but what a hostile program may know;
`benchmarks.sandbox` runs them.  In a program `{outside}` is a folder of the user's with the files `canary` and
`problems.jsonl`, `{package}` the folder of `ensemblehub`, `{port}` a port that listens on the loopback, `{datagrams}` and
`{stream}` Unix sockets, `{fifo}` a FIFO with something in it, `{terminal}` a terminal, `{device}` a block device.
"""

# ruff: noqa: E501  (programs as data)

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from ensemblehub.lab.tasks.sandbox_forms import Form

TEST = "def check(candidate):\n    for x in (2, 3, 5):\n        out = candidate(x)\n        assert out == x * x, out\n"
MAPPED = (
    "def check(candidate):\n    numbers = (2, 3, 5)\n    for x, out in zip(numbers, map(candidate, numbers)):\n"
    "        assert out == x * x, out\n"
)
SECRET = "HOSTILE_SECRET"
MARK = "hostile-left-this"
SHARED_BYTES = "16777000"  # of a System V segment
_ATTEMPT = """\
import os, sys, time
def attempt(*actions):
    said = []
    for action in actions:
        try:
            said.append("DONE " + repr(action()))
        except BaseException as error:
            said.append(type(error).__name__)
    return " ".join(said)
"""
_WRONG = "def f(x):\n    return x + 2 if x != 2 else 5\n"
_FORGED = json.dumps({"nonce": "0" * 32, "passed": True, "reason": ""})

# How a run may end, as regular expressions of its reason.
SAID_NO = r"AssertionError: (?!.*DONE)(\w*([eE]rror|Exception)( |$))+$"
WRONG = r"AssertionError"
WRONG_OR_BROKEN = r"AssertionError|TypeError"
ENDED = r"the program ended its process|ended without a verdict"
TIME = r"^took longer than"
MEMORY = rf"MemoryError|{TIME}|ended its process"


@dataclass(frozen=True)
class Hostile:
    """One program.

    Attributes:
        tries: what it tries, in a few words.
        ends: regular expression of the reason why it does not pass, which also says that it attained nothing.
        elsewhere: the same for forms where it differs; what a weaker form lets through is written there.
        dangerous: where system calls are not filtered it can do harm to this user's processes or files.
        test: what it is run against.
    """

    name: str
    tries: str
    program: str
    ends: str
    elsewhere: Mapping[Form, str] = field(default_factory=dict)
    dangerous: bool = False
    test: str = TEST

    def expected(self, form: Form) -> str:
        """The regular expression for a form."""
        return self.elsewhere.get(form, self.ends)


def _attempts(name: str, tries: str, code: str, ends: str = SAID_NO, **more: object) -> Hostile:
    """A program that attempts expressions, one a line, after statements up to a line `--`, and returns what came of them."""
    statements, _, expressions = code.rpartition("--\n")
    calls = ", ".join(f"lambda: {line}" for line in expressions.splitlines())
    program = f"{_ATTEMPT}{statements}def f(x):\n    return attempt({calls})\n"
    return Hostile(name, tries, program, ends, **more)  # type: ignore[arg-type]


_PROCESSES = (
    Hostile(
        "fork bomb",
        "processes without end",
        "import os\ndef f(x):\n    made = 0\n    for _ in range(10000):\n        try:\n            os.fork()\n            made += 1\n"
        "        except OSError:\n            pass\n    return 'forked %d' % made\n",
        r"forked 0$",
        dangerous=True,
    ),
    Hostile(
        "thread bomb",
        "threads without end",
        "import threading, time\ndef f(x):\n    made = 0\n    for _ in range(2000):\n        try:\n            threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n            made += 1\n"
        "        except RuntimeError:\n            pass\n    return 'started %d' % made\n",
        r"started 0$",
        dangerous=True,
    ),
    _attempts(
        "daemon",
        "a process in a session of its own, by a double fork",
        "def daemon():\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            while True: time.sleep(1)\n        os._exit(0)\n    return 'forked'\n--\ndaemon()\n",
        dangerous=True,
    ),
    _attempts(
        "subprocess that outlives the test",
        "`sleep` in a new session",
        "import subprocess\n--\nsubprocess.Popen(['/bin/sleep', '1000'], start_new_session=True).pid\n",
        dangerous=True,
    ),
    _attempts(
        "os.posix_spawn",
        "a shell by vfork",
        "os.posix_spawn('/bin/sh', ['sh', '-c', 'sleep 1000'], {})\n",
        dangerous=True,
    ),
    _attempts(
        "os.system",
        "a shell",
        "1 / (os.system('sleep 1000 &') == -1) and 'ran'\nos.popen('id').read() or 1 / 0\n",
        r"AssertionError: DONE 'ran' (PermissionError|BlockingIOError|ZeroDivisionError)|AssertionError: (ZeroDivisionError|PermissionError)",
        dangerous=True,
    ),
    _attempts(
        "exec",
        "to become another program",
        "os.execv('/bin/sh', ['sh', '-c', 'sleep 1000'])\nos.execv(sys.executable, ['python', '-c', 'while True: pass'])\n",
    ),
    _attempts(
        "multiprocessing",
        "a pool of processes",
        "import multiprocessing\n--\nmultiprocessing.get_context('fork').Pool(4).map(abs, [1])\n",
        dangerous=True,
    ),
    Hostile(
        "thread that outlives the test",
        "a thread that goes on behind a returned call",
        "import threading, time\ndef run():\n    while True:\n        time.sleep(0.01)\ndef f(x):\n    threading.Thread(target=run).start()\n    return x * x + 1\n",
        r"can't start new thread$|AssertionError: 5",
    ),
    _attempts(
        "asyncio subprocess",
        "a process by asyncio",
        "import asyncio\n--\nasyncio.run(asyncio.create_subprocess_exec('/bin/sleep', '1000'))\n",
        dangerous=True,
    ),
    Hostile(
        "atexit",
        "a verdict printed at the end",
        f"import atexit, os, sys\ndef last():\n    for number in range(64):\n        try:\n            os.write(number, b'''{_FORGED}\\n''')\n        except OSError:\n            pass\natexit.register(last)\ndef f(x):\n    sys.exit(0)\n",
        r"SystemExit|not plain data|ended its process",
    ),
)

_MEMORY = (
    Hostile("memory bomb", "10 GB at once", "def f(x):\n    return len(bytearray(10**10))\n", r"MemoryError"),
    Hostile(
        "memory bit by bit",
        "10 MB again and again",
        "def f(x):\n    out = []\n    while True:\n        out.append(bytearray(10**7))\n",
        MEMORY,
    ),
    Hostile(
        "memory, caught",
        "to hold on to what it has got",
        "def f(x):\n    out = []\n    while True:\n        try:\n            out.append(bytearray(10**6))\n        except MemoryError:\n            pass\n",
        MEMORY,
    ),
    Hostile(
        "mmap bomb",
        "mappings without end",
        "import mmap\ndef f(x):\n    out = []\n    while True:\n        out.append(mmap.mmap(-1, 1 << 26))\n        out[-1].write(b'x' * (1 << 26))\n",
        r"MemoryError|OSError|^took longer than",
    ),
    Hostile(
        "memory files",
        "memory outside the address space, by memfd_create",
        "import os\ndef f(x):\n    size, held = 0, []\n    try:\n        while True:\n            held.append(os.memfd_create('m'))\n            size += os.write(held[-1], b'x' * (1 << 21))\n    except OSError:\n        return 'wrote %d MB' % (size >> 20)\n",
        r"wrote [0-6]?\d MB",
    ),
    Hostile("long string", "a string of 1 TB", "def f(x):\n    return 'a' * 10**12\n", r"MemoryError"),
    Hostile(
        "long result",
        "40 MB to read for the checker",
        "def f(x):\n    return 'a' * (40 << 20)\n",
        r"the result is too long",
    ),
    Hostile(
        "wide result",
        "a list that grows in the checker",
        "def f(x):\n    return [[]] * (3 << 20)\n",
        r"the result is too long|MemoryError|^took longer than",
    ),
    Hostile(
        "infinite generator",
        "an endless result",
        "def f(x):\n    while True:\n        yield x\n",
        r"generator is not plain data",
    ),
    Hostile(
        "infinite list",
        "a list whose iteration never ends",
        "class Endless(list):\n    def __iter__(self):\n        while True:\n            yield 4\ndef f(x):\n    return Endless()\n",
        MEMORY,
    ),
    _attempts(
        "System V shared memory",
        "a segment that stays",
        f"import ctypes\n--\n1 // (ctypes.CDLL(None).shmget(0, {SHARED_BYTES}, 0o1600) != -1)\n1 // (ctypes.CDLL(None).msgget(0, 0o1600) != -1)\n",
        dangerous=True,
    ),
    _attempts(
        "POSIX shared memory",
        "a segment in /dev/shm",
        f"from multiprocessing import shared_memory\n--\nshared_memory.SharedMemory('{MARK}', create=True, size=1 << 20).name\nopen('/dev/shm/{MARK}', 'wb').write(b'x' * 1000)\n",
        dangerous=True,
    ),
    Hostile(
        "many descriptors",
        "to open files without end",
        "def f(x):\n    held = []\n    try:\n        while True:\n            held.append(open('/dev/null'))\n    except OSError:\n        return 'opened %d' % len(held)\n",
        r"opened [1-6]?\d$",
    ),
)

_FILES = (
    Hostile(
        "full disk",
        "to fill its folder",
        "def f(x):\n    size = 0\n    try:\n        for number in range(1000):\n            with open('big%d' % number, 'wb', buffering=0) as file:\n                size += file.write(b'x' * (1 << 20))\n    except OSError:\n        pass\n    return 'wrote %d MB' % (size >> 20)\n",
        r"wrote 1[56] MB$",
        {"limits": r"wrote 0 MB$"},
        dangerous=True,
    ),
    Hostile(
        "many inodes",
        "files without end",
        "def f(x):\n    made = 0\n    try:\n        for number in range(100000):\n            open('file%d' % number, 'w').close()\n            made += 1\n    except OSError:\n        pass\n    return 'made %d' % made\n",
        r"made 10[12]\d$",
        {"limits": r"made 0$"},
        dangerous=True,
    ),
    _attempts(
        "huge file",
        "one of 5 MB, and a sparse one of 1 TB",
        "open('big', 'wb', buffering=0).write(b'x' * (1 << 20)) - open('big', 'ab', buffering=0).write(b'x')\nos.truncate('big', 1 << 40)\n",
        dangerous=True,
    ),
    _attempts(
        "write outside",
        "files in the user's folders",
        f"open('{{outside}}/{MARK}', 'w').write('x')\nopen(os.path.expanduser('~/{MARK}'), 'w').write('x')\nopen('/var/tmp/{MARK}', 'w').write('x')\nopen('/etc/{MARK}', 'w').write('x')\nos.mkdir('{{outside}}/{MARK}')\nos.mknod('{{outside}}/{MARK}')\nos.mkfifo('{{outside}}/{MARK}')\n",
        dangerous=True,
    ),
    _attempts(
        "write into /tmp",
        "a file that stays in /tmp",
        f"open('/tmp/{MARK}', 'w').write('x')\n",
        elsewhere=dict.fromkeys(("bubblewrap", "namespaces"), r"AssertionError: DONE 1$"),
        dangerous=True,
    ),  # its own /tmp
    _attempts(
        "write into the package",
        "to change the grader",
        "open('{package}/tasks/sandbox_child.py', 'a').write('#')\nopen('/sandbox_child.py', 'a').write('#')\nopen('{package}/tasks/hostile.py', 'w').write('#')\nopen(os.__file__, 'a').write('#')\n",
        dangerous=True,
    ),
    _attempts(
        "change what is there",
        "to remove, rename, empty or open up a file",
        "os.remove('{outside}/canary')\nos.rename('{outside}/canary', '{outside}/other')\nos.truncate('{outside}/canary', 0)\nos.chmod('{outside}/canary', 0o777)\nos.utime('{outside}/canary')\nos.setxattr('{outside}/canary', 'user.a', b'b')\nos.rmdir('{outside}')\n",
        dangerous=True,
    ),
    _attempts(
        "change by descriptor",
        "to open a file for reading and change it through that",
        "file = None\ntry:\n    file = os.open('{outside}/canary', os.O_RDONLY)\nexcept OSError:\n    pass\n--\nos.fchmod(file, 0o777)\nos.ftruncate(file, 0)\nos.write(file, b'x')\nopen('/proc/self/fd/%d' % file, 'w').write('x')\n",
        dangerous=True,
    ),
    _attempts(
        "symbolic link",
        "a way out of its folder",
        "try:\n    os.symlink('{outside}', 'link')\nexcept OSError:\n    pass\n--\nopen('link/canary', 'a').write('x')\nos.remove('link/canary')\n",
        dangerous=True,
    ),
    _attempts(
        "hard link", "the canary under another name", "os.link('{outside}/canary', 'mine')\n", dangerous=True
    ),
    _attempts("read /etc/passwd", "the machine's users", "open('/etc/passwd').readline()[:5]\n"),
    _attempts(
        "read the user's files", "what lies in a folder of the user's", "open('{outside}/canary').read()\n"
    ),
    Hostile(
        "dataset",
        "the reference solution in a file of questions",
        "import json\ndef f(x):\n    with open('{outside}/problems.jsonl') as file:\n        exec(json.loads(file.readline())['canonical_solution'], globals())\n    return solution(x)\n",
        r"FileNotFoundError|PermissionError",
    ),
    _attempts(
        "read the package",
        "what lies beside the grader",
        "open('{package}/tasks/sandbox.py').read(9)\nos.listdir('{package}')\nos.listdir('{outside}')\n",
    ),
    _attempts(
        "locks",
        "to lock and watch files that others use",
        "import ctypes, fcntl\nfile = open(os.__file__)\n--\nfcntl.flock(file, fcntl.LOCK_EX)\nfcntl.lockf(file, fcntl.LOCK_SH)\nfcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)\nfcntl.flock(open('{outside}/canary'), fcntl.LOCK_EX)\n1 // (ctypes.CDLL(None).inotify_init1(0) != -1)\n",
        dangerous=True,
    ),
    _attempts(
        "socket file",
        "to leave a socket where a file can be",
        f"import socket\n--\nsocket.socketpair()[0].bind('{{outside}}/{MARK}')\nsocket.socketpair()[0].bind('/tmp/{MARK}')\nsocket.socketpair()[0].bind('{MARK}')\nsocket.socketpair()[0].bind('\\0{MARK}')\n",
        dangerous=True,
    ),
    _attempts(
        "block device",
        "to read and overwrite a disk",
        "open('{device}', 'rb').read(9)\nopen('{device}', 'r+b').write(b'hostile')\nos.open('{device}', os.O_WRONLY)\n",
        dangerous=True,
    ),
    _attempts(
        "devices",
        "the kernel's log, console, memory and virtual machines",
        "import ctypes\n--\nopen('/dev/kmsg').read(1)\nopen('/dev/kmsg', 'w').write('hostile')\nopen('/dev/console', 'w').write('hostile')\nopen('/dev/kvm', 'r+b', buffering=0)\nopen('/dev/mem', 'rb').read(1)\nopen('/dev/tty', 'w').write('hostile')\nopen('/dev/ptmx', 'r+b', buffering=0)\nos.openpty()\n1 // (ctypes.CDLL(None).klogctl(10, None, 0) != -1)\n",
        dangerous=True,
    ),
    _attempts(
        "terminal",
        "to write and type into the user's terminal",
        "import fcntl\n--\nopen('{terminal}', 'w').write('hostile')\nos.open('{terminal}', os.O_RDWR)\nfcntl.ioctl(os.open('{terminal}', os.O_RDONLY), 0x5412, b'x')\n",
        dangerous=True,
    ),
    _attempts(
        "FIFO",
        "to drain and fill a FIFO of the user's",
        "os.read(os.open('{fifo}', os.O_RDONLY | os.O_NONBLOCK), 99)\nos.write(os.open('{fifo}', os.O_WRONLY | os.O_NONBLOCK), b'hostile')\n",
        dangerous=True,
    ),
    _attempts(
        "mount and chroot",
        "a file system of its own",
        "import ctypes\nlibc = ctypes.CDLL(None)\n--\n1 // (libc.mount(b'tmpfs', b'/dev', b'tmpfs', 0, None) == 0)\n1 // (libc.umount2(b'/', 2) == 0)\n1 // (libc.unshare(0x10000000) == 0)\nos.chroot('/')\n",
    ),
)

_SURROUNDINGS = (
    _attempts(
        "own environment",
        "variables with secrets",
        f"os.environ.get('{SECRET}') or 1 / 0\n[one for one in os.environ if one != 'LC_CTYPE'] or 1 / 0\nb'{SECRET}' in open('/proc/self/environ', 'rb').read() or 1 / 0\n",
        r"AssertionError: (ZeroDivisionError|FileNotFoundError|PermissionError)( (ZeroDivisionError|FileNotFoundError|PermissionError))*$|AssertionError: ZeroDivisionError DONE \['PWD'\] FileNotFoundError$",
    ),
    Hostile(
        "others' environments",
        "secrets of this user's other processes, from /proc",
        f"import os\ndef f(x):\n    try:\n        names = os.listdir('/proc')\n    except OSError:\n        return 'nothing there'\n    for name in names:\n        try:\n            if b'{SECRET}' in open('/proc/%s/environ' % name, 'rb').read():\n                return 'found'\n        except OSError:\n            pass\n    return 'not found'\n",
        r"nothing there$",
    ),
    Hostile(
        "others' memory",
        "the right answers in the memory of the grader or of any process",
        "import os\ndef f(x):\n    seen = 0\n    for name in [str(os.getppid()), *map(str, range(1, 5000)), 'self']:\n        for what in ('mem', 'maps', 'environ', 'root/etc/passwd', 'cwd', *['fd/3'] * (name not in ('self', str(os.getpid())))):\n            try:\n                os.listdir('/proc/%s/cwd' % name) if what == 'cwd' else os.open('/proc/%s/%s' % (name, what), os.O_RDONLY)\n                seen += 1\n            except OSError:\n                pass\n    return 'seen %d' % seen\n",
        r"seen 0$",
    ),
    _attempts(
        "standard input",
        "to read the checker's job",
        "sys.stdin.read() or 1 / 0\nopen('/proc/%d/fd/0' % os.getppid()).read() or 1 / 0\n",
        r"AssertionError: (ZeroDivisionError|PermissionError|FileNotFoundError) (ZeroDivisionError|PermissionError|FileNotFoundError)$",
    ),
    _attempts(
        "connect",
        "a server on the loopback",
        "import socket\n--\nsocket.create_connection(('127.0.0.1', {port}), 1)\n",
    ),
    _attempts(
        "bind and listen",
        "a server of its own",
        "import socket\n--\nsocket.create_server(('127.0.0.1', 0))\n",
    ),
    _attempts("DNS", "to resolve a name", "import socket\n--\nsocket.getaddrinfo('example.com', 80)\n"),
    _attempts(
        "Unix datagrams",
        "a service's socket, from a socket pair",
        "import socket\ndef send():\n    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n    return one.sendto(b'hostile', '{datagrams}')\n--\nsend()\n",
    ),
    _attempts(
        "Unix streams",
        "a service's socket, by connecting a socket pair",
        "import ctypes, socket\npair = socket.socketpair()\naddress = b'\\1\\0' + b'{stream}' + bytes(9)\n--\npair[0].connect('{stream}')\nsocket.socket(socket.AF_UNIX).connect('{stream}')\n1 // (ctypes.CDLL(None).connect(pair[0].fileno(), address, len(address)) == 0)\n",
    ),
    _attempts(
        "raw sockets",
        "packets and netlink",
        "import socket\n--\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n",
    ),
    _attempts(
        "io_uring",
        "calls that no filter sees",
        "import ctypes\n--\n1 // (ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120)) >= 0)\n",
        r"AssertionError: ZeroDivisionError$",
    ),
)

_EVERYBODY = (
    "def everybody():\n    try:\n        names = [*os.listdir('/proc')]\n    except OSError:\n        names = [os.getppid(), *range(1, 5000)]\n"
    "    return [int(name) for name in names if str(name).isdigit() and int(name) not in (0, 1, os.getpid())]\n"
    "def each(action):\n    for pid in everybody():\n        try:\n            action(pid)\n        except OSError as error:\n            last = error\n        else:\n            return 'reached one'\n    raise last\n"
)
_SIGNALS = (
    _attempts("kill the parent", "SIGKILL to its parent", "os.kill(os.getppid(), 9)\n", dangerous=True),
    _attempts("kill -1", "SIGKILL to everybody", "os.kill(-1, 9)\n", dangerous=True),
    Hostile(
        "kill the group",
        "SIGKILL to its process group",
        "import os, signal\ndef f(x):\n    try:\n        os.killpg(0, signal.SIGKILL)\n    except OSError as error:\n        return type(error).__name__\n",
        rf"PermissionError|{ENDED}",
        dangerous=True,
    ),
    _attempts(
        "stop the parent",
        "SIGSTOP to its parent and everybody",
        f"import signal\n{_EVERYBODY}--\nos.kill(os.getppid(), signal.SIGSTOP)\neach(lambda pid: os.kill(pid, signal.SIGSTOP))\n",
        dangerous=True,
    ),
    _attempts(
        "kill other sandboxes",
        "SIGKILL to every checker it finds",
        f"{_EVERYBODY}--\neach(lambda pid: os.kill(pid, 9))\n",
        dangerous=True,
    ),
    _attempts(
        "signals by pidfd",
        "SIGKILL through a descriptor of a process",
        f"import signal\n{_EVERYBODY}--\neach(lambda pid: signal.pidfd_send_signal(os.pidfd_open(pid), 9))\n",
        dangerous=True,
    ),
    _attempts(
        "signals by fcntl",
        "to have the kernel send SIGKILL for input",
        "import fcntl\nends = os.pipe()\n--\nfcntl.fcntl(ends[0], 10, 9)\nfcntl.fcntl(ends[0], fcntl.F_SETOWN, os.getppid())\n",
        dangerous=True,
    ),
    _attempts(
        "others' limits",
        "to lower limits and priorities of others",
        f"import resource\n{_EVERYBODY}--\neach(lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0)))\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)\n",
        dangerous=True,
    ),
    _attempts(
        "raise limits",
        "more memory, processes, files and time",
        "import resource\n--\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\nresource.setrlimit(resource.RLIMIT_NPROC, (999, 999))\nresource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))\nos.nice(-10)\n",
    ),
    _attempts(
        "outlive the parent",
        "to give up dying with it, and to lead a session",
        "import ctypes\nlibc = ctypes.CDLL(None)\n--\n1 // (libc.prctl(1, 0, 0, 0, 0) == 0)\nos.setsid()\n",
    ),
)

_TIME = (
    Hostile("loop", "never to end", "def f(x):\n    while True:\n        pass\n", TIME),
    Hostile("loop at once", "never to load", "while True:\n    pass\n", TIME),
    Hostile("sleep", "to wait for ever", "import time\ndef f(x):\n    time.sleep(10**6)\n", TIME),
    Hostile(
        "catches everything",
        "to survive any exception",
        "def f(x):\n    while True:\n        try:\n            while True:\n                pass\n        except BaseException:\n            pass\n",
        TIME,
    ),
    Hostile(
        "ignores signals",
        "to survive SIGTERM, SIGALRM, SIGXCPU and the rest",
        "import signal\nfor one in range(1, 65):\n    try:\n        signal.signal(one, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\ndef f(x):\n    while True:\n        pass\n",
        TIME,
    ),
    Hostile(
        "no alarm",
        "to cancel alarms and flood itself with its own",
        "import signal\nsignal.alarm(0)\nsignal.signal(signal.SIGALRM, lambda *a: None)\nsignal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)\ndef f(x):\n    while True:\n        signal.pause()\n",
        TIME,
    ),
    Hostile(
        "time stands still",
        "to patch the clock",
        "import time\ntime.time = time.monotonic = time.perf_counter = lambda: 0.0\ndef f(x):\n    while time.time() < 1:\n        pass\n",
        TIME,
    ),
    Hostile(
        "regular expression",
        "catastrophic backtracking",
        "import re\ndef f(x):\n    return re.match(r'(a+)+$', 'a' * 60 + 'b')\n",
        TIME,
    ),
    Hostile(
        "power",
        "a loop in C that no signal handler interrupts",
        "def f(x):\n    return pow(7, 10**9) % 10\n",
        rf"{TIME}|MemoryError",
    ),
    Hostile(
        "endless output",
        "print without end",
        "def f(x):\n    while True:\n        print('x' * 10000)\n",
        TIME,
    ),
    Hostile(
        "endless raw output",
        "to write to standard output and error without end",
        "import os\ndef f(x):\n    while True:\n        os.write(1, b'x' * 10000)\n        os.write(2, b'x' * 10000)\n",
        TIME,
    ),
    Hostile(
        "faulthandler",
        "an exit by a watchdog of its own",
        "import faulthandler, time\ndef f(x):\n    faulthandler.dump_traceback_later(0.1, exit=True)\n    time.sleep(10**6)\n",
        rf"{TIME}|{ENDED}|RuntimeError",
    ),
    Hostile(
        "hash collisions",
        "a slow dictionary for the checker",
        "def f(x):\n    return {i * (2**61 - 1): 0 for i in range(1, 20000)}\n",
        rf"{TIME}|AssertionError|too long",
    ),
    Hostile(
        "exception that never ends",
        "a message without end",
        "class Slow(Exception):\n    def __str__(self):\n        while True:\n            pass\ndef f(x):\n    raise Slow\n",
        TIME,
    ),
)

_ENDINGS = (
    Hostile("sys.exit at once", "a clean exit while loading", "import sys\nsys.exit(0)\n", r"SystemExit"),
    Hostile(
        "sys.exit in the call", "a clean exit", "import sys\ndef f(x):\n    sys.exit(0)\n", r"SystemExit"
    ),
    Hostile("os._exit at once", "an exit that nothing catches", "import os\nos._exit(0)\n", ENDED),
    Hostile("os._exit in the call", "the same, later", "import os\ndef f(x):\n    os._exit(0)\n", ENDED),
    Hostile("os.abort", "a crash", "import os\ndef f(x):\n    os.abort()\n", ENDED),
    Hostile(
        "segmentation fault",
        "to write to address 0",
        "import ctypes\ndef f(x):\n    ctypes.memset(0, 0, 8)\n",
        ENDED,
    ),
    Hostile(
        "right, then exits",
        "to be right once",
        "import os\ndef f(x):\n    return x * x if x == 2 else os._exit(0)\n",
        ENDED,
    ),
    Hostile(
        "KeyboardInterrupt",
        "what `except Exception` misses",
        "def f(x):\n    raise KeyboardInterrupt\n",
        r"KeyboardInterrupt",
    ),
    Hostile("BaseException", "the same", "def f(x):\n    raise BaseException('no')\n", r"BaseException"),
    Hostile("GeneratorExit", "the same", "def f(x):\n    raise GeneratorExit\n", r"GeneratorExit"),
    Hostile(
        "StopIteration",
        "to end the test's own loop",
        "def f(x):\n    raise StopIteration\n",
        r"StopIteration",
        test=MAPPED,
    ),
    Hostile(
        "a kind of StopIteration",
        "the same by a class of its own",
        "class Stop(StopIteration, ValueError):\n    pass\ndef f(x):\n    raise Stop(4)\n",
        r"Stop: 4",
        test=MAPPED,
    ),
    Hostile(
        "nothing next",
        "the same by an empty iterator",
        "def f(x):\n    return next(iter(()))\n",
        r"StopIteration",
        test=MAPPED,
    ),
    Hostile(
        "StopAsyncIteration",
        "the same for asynchronous loops",
        "def f(x):\n    raise StopAsyncIteration\n",
        r"StopAsyncIteration",
        test=MAPPED,
    ),
    Hostile(
        "StopIteration where one is expected",
        "the same against a test with handlers",
        "def f(x):\n    raise StopIteration\n",
        r"StopIteration",
        test=MAPPED.replace("check(", "loop(")
        + "def check(candidate):\n    try:\n        loop(candidate)\n    except (ValueError, StopIteration):\n        assert False\n",
    ),
    Hostile(
        "exception where any is forgiven",
        "to be forgiven by `except Exception`",
        "def f(x):\n    raise ValueError\n",
        r"ValueError",
        test="def check(candidate):\n    try:\n        assert candidate(2) == 4\n    except Exception:\n        pass\n",
    ),
    Hostile(
        "generator where TypeError is expected",
        "to pass no plain data off as an exception",
        "def f(x):\n    yield 4\n",
        r"generator is not plain data",
        test="def check(candidate):\n    try:\n        candidate(2)\n    except TypeError:\n        pass\n",
    ),
    Hostile(
        "AssertionError",
        "the test's own exception",
        "def f(x):\n    raise AssertionError('passed')\n",
        r"AssertionError: passed",
    ),
    Hostile(
        "hostile __str__",
        "an exception that cannot be told",
        "class Odd(Exception):\n    def __str__(self):\n        raise SystemExit(0)\n    __repr__ = __str__\ndef f(x):\n    raise Odd\n",
        rf"{ENDED}|SystemExit",
    ),
    Hostile("recursion", "to call itself without end", "def f(x):\n    return f(x)\n", r"RecursionError"),
    Hostile(
        "deep recursion",
        "the same without the interpreter's bound",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x) + 1\n",
        rf"{ENDED}|{MEMORY}",
    ),
    Hostile(
        "deep result",
        "a list nested 900 deep",
        "def f(x):\n    out = []\n    for _ in range(900):\n        out = [out]\n    return out\n",
        rf"RecursionError|not plain data|{ENDED}",
    ),
    Hostile(
        "result that contains itself",
        "an endless structure",
        "def f(x):\n    out = []\n    out.append(out)\n    return out\n",
        r"RecursionError",
    ),
    Hostile("no function", "nothing to call", "g = 1\n", r"no function"),
    Hostile("syntax", "not a program", "def f(x:\n", r"SyntaxError"),
    Hostile("NUL bytes", "a source with NUL", "def f(x):\n    return 4\n\0", r"SyntaxError|ValueError"),
    Hostile(
        "surrogates in the source",
        "text that is no Unicode",
        "def f(x):\n    return '\ud800'\n",
        r"UnicodeEncodeError|SyntaxError",
    ),
    Hostile(
        "nested source",
        "to break the compiler",
        "def f(x):\n    return " + "(" * 50000 + ")" * 50000 + "\n",
        r"SyntaxError|MemoryError|RecursionError|ended its process",
    ),
    Hostile(
        "gigantic source",
        "20 MB of program",
        "def f(x):\n    return 5\n" + "#" * (20 << 20),
        r"more than 1,048,576 characters",
    ),
    Hostile(
        "descriptors closed",
        "to leave the checker without an answer",
        "import os\nos.closerange(0, 64)\n" + _WRONG,
        ENDED,
    ),
)

_CHECKER = (
    Hostile(
        "prints a verdict",
        "a forged verdict on standard output",
        f"print('''{_FORGED}''', flush=True)\nprint('OK\\n1 passed')\n" + _WRONG,
        WRONG,
    ),
    Hostile(
        "verdicts everywhere",
        "a forged verdict in every descriptor",
        f"import os\nfor number in range(64):\n    try:\n        os.write(number, b'''{_FORGED}\\n''')\n    except OSError:\n        pass\n"
        + _WRONG,
        r"not plain data",
    ),
    Hostile(
        "forged answers",
        "replies in advance",
        "import os\nfor number in range(64):\n    try:\n        os.write(number, b'[\"return\", true]\\n' * 5)\n    except OSError:\n        pass\n"
        + _WRONG,
        WRONG,
    ),
    Hostile(
        "strange answers",
        "replies that build something else",
        'import os\nfor number in range(64):\n    try:\n        os.write(number, b\'["return", ["eval", "4"]]\\n\' * 5)\n    except OSError:\n        pass\n'
        + _WRONG,
        r"not plain data",
    ),
    Hostile(
        "flood of answers",
        "a line without end",
        "import os\ndef f(x):\n    for number in range(3, 64):\n        try:\n            while True:\n                os.write(number, b'x' * 65536)\n        except OSError:\n            pass\n",
        rf"the result is too long|{TIME}",
    ),
    Hostile(
        "own check", "to define the test itself", _WRONG + "def check(candidate):\n    return None\n", WRONG
    ),
    Hostile(
        "builtins",
        "to patch AssertionError, check, isinstance and int",
        _WRONG
        + "import builtins\nbuiltins.check = lambda candidate: None\nbuiltins.AssertionError = int\nbuiltins.isinstance = lambda *a: True\n",
        rf"{WRONG}|{ENDED}|not plain data",
    ),
    Hostile(
        "unittest and assert",
        "to patch the tools of tests",
        _WRONG
        + "import unittest, sys\nunittest.TestCase.assertEqual = lambda *a: None\nunittest.TestCase.failureException = ZeroDivisionError\nsys.modules['unittest'] = None\n",
        WRONG,
    ),
    Hostile(
        "sys.modules",
        "modules of its own for the checker",
        _WRONG
        + "import sys, types\nfor name in ('json', 'os', 'subprocess', 'traceback', 'signal'):\n    sys.modules[name] = types.ModuleType(name)\n",
        WRONG,
    ),
    Hostile(
        "json patched",
        "to speak for the worker",
        f"import json\njson.dumps = lambda value: '''{_FORGED}'''\n" + _WRONG,
        r"not plain data",
    ),
    Hostile(
        "import hooks",
        "to answer the checker's imports",
        "import sys\nclass Hook:\n    def find_spec(self, *a):\n        sys.exit(0)\nsys.meta_path.insert(0, Hook())\nsys.path_hooks.insert(0, Hook)\n"
        + _WRONG,
        WRONG,
    ),
    Hostile(
        "tracing",
        "to change results by settrace and setprofile",
        "import sys\ndef trace(frame, event, value):\n    for name in ('value', 'out', 'action'):\n        if name in frame.f_locals:\n            frame.f_locals[name] = 4\n    return trace\nsys.settrace(trace)\nsys.setprofile(trace)\n"
        + _WRONG,
        WRONG_OR_BROKEN,
    ),
    Hostile(
        "gc",
        "to find the nonce or the test among all objects",
        "import gc\ndef f(x):\n    found = [one for one in gc.get_objects() if type(one) is dict and ('nonce' in one or 'test' in one and 'prompt' in one)]\n    return 'found %d' % len(found)\n",
        r"found 0$",
    ),
    Hostile(
        "gc patch",
        "to replace the worker's own functions",
        _WRONG
        + "import gc\nfor one in gc.get_objects():\n    if type(one) is dict:\n        for name in ('check', '_reason', '_run_test', '_verdict'):\n            if name in one:\n                one[name] = lambda *a: ''\n",
        WRONG,
    ),
    Hostile(
        "frames",
        "the same by its callers' frames",
        _WRONG
        + "import sys\nframe = sys._getframe()\nwhile frame:\n    frame.f_globals.update(encode=lambda value: True, _reason=lambda *a: '', decode=lambda data: 4)\n    frame = frame.f_back\n",
        WRONG_OR_BROKEN,
    ),
    Hostile(
        "worker's replies",
        "to answer 'return' with no value",
        _WRONG + "import sys\nsys._getframe(2).f_globals['_attempt'] = lambda *a: ['return']\n",
        r"not plain data|IndexError|ended its process",
    ),
    Hostile(
        "ctypes",
        "to change the number 4 in memory",
        "import ctypes\nctypes.c_int32.from_address(id(5) + 24).value = 4\ndef f(x):\n    return 5\n",
        rf"{WRONG}|{ENDED}",
    ),
    Hostile(
        "always equal",
        "an object that equals everything",
        "class Same:\n    __eq__ = lambda self, other: True\n    __hash__ = None\ndef f(x):\n    return Same()\n",
        r"not plain data",
    ),
    Hostile(
        "always equal int",
        "an int that equals everything",
        "class Same(int):\n    __eq__ = lambda self, other: True\n    __ne__ = lambda self, other: False\n    __hash__ = None\ndef f(x):\n    return Same(7)\n",
        r"AssertionError: 7$",
    ),
    Hostile(
        "always equal text",
        "a str that equals everything",
        "class Same(str):\n    __eq__ = lambda self, other: True\n    __hash__ = None\ndef f(x):\n    return Same('7')\n",
        r"AssertionError: 7$",
    ),
    Hostile(
        "always equal list",
        "a list that equals everything",
        "class Same(list):\n    __eq__ = lambda self, other: True\n    __len__ = lambda self: 4\n    __hash__ = None\ndef f(x):\n    return Same([7])\n",
        r"AssertionError: \[7\]$",
    ),
    Hostile(
        "always equal float",
        "a float that lies about its value",
        "class Same(float):\n    __eq__ = lambda self, other: True\n    __float__ = lambda self: self\n    __hash__ = None\ndef f(x):\n    return Same(7)\n",
        r"AssertionError: 7.0|TypeError",
    ),
    Hostile(
        "own class, faked",
        "to pass for an int",
        "class Same:\n    __class__ = int\n    __eq__ = lambda self, other: True\ndef f(x):\n    return Same()\n",
        r"TypeError|ended its process",
    ),
    Hostile(
        "NaN",
        "a number that compares as it likes",
        "def f(x):\n    return float('nan')\n",
        r"AssertionError: nan$",
    ),
    Hostile("True", "what is equal to 1", "def f(x):\n    return True\n", r"AssertionError: True$"),
    Hostile(
        "pickle",
        "an object that runs code where it is loaded",
        "import os, pickle\nclass Bomb:\n    def __reduce__(self):\n        return (os._exit, (0,))\ndef f(x):\n    return pickle.dumps(Bomb()) if x == 2 else Bomb()\n",
        r"AssertionError: b'",
    ),
    Hostile(
        "coroutine",
        "a result that is not there yet",
        "async def f(x):\n    return x * x\n",
        r"coroutine is not plain data",
    ),
    Hostile(
        "surrogates in the result", "text that is no Unicode", "def f(x):\n    return '\\ud800' * 3\n", WRONG
    ),
    _attempts(
        "/proc/self/mem",
        "to write into itself and read its checker",
        "open('/proc/%d/mem' % os.getppid(), 'rb').read(1) if os.path.exists('/proc/%d/mem' % os.getppid()) else 1 / 0\nos.open('/proc/%d/mem' % os.getppid(), os.O_RDWR)\n",
        dangerous=True,
    ),
    Hostile(
        "checkers in /proc",
        "memory, descriptors and job of every checker",
        "import os\ndef f(x):\n    seen = []\n    for name in [str(os.getppid()), *map(str, range(1, 5000))]:\n        try:\n            if b'sandbox_child.py\\0check' not in open('/proc/%s/cmdline' % name, 'rb').read():\n                continue\n        except OSError:\n            continue\n        for what in ('mem', 'environ', 'maps', 'fd/0', 'fd/1', 'fd/3', 'fd/4', 'cwd/x', 'root/etc/passwd'):\n            try:\n                open('/proc/%s/%s' % (name, what), 'rb').read(1)\n                seen.append(what)\n            except OSError:\n                pass\n    return 'seen %s' % seen\n",
        r"seen \[\]$",
    ),
    _attempts(
        "ptrace",
        "to trace or read its checker",
        "import ctypes\nlibc = ctypes.CDLL(None)\n--\n1 // (libc.ptrace(16, os.getppid(), 0, 0) == 0)\n1 // (libc.ptrace(0x4206, os.getppid(), 0, 0) == 0)\n1 // (libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0) == 0)\n",
        dangerous=True,
    ),
)

HOSTILE: tuple[Hostile, ...] = (
    *_PROCESSES,
    *_MEMORY,
    *_FILES,
    *_SURROUNDINGS,
    *_SIGNALS,
    *_TIME,
    *_ENDINGS,
    *_CHECKER,
)
