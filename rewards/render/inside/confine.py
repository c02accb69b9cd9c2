"""What a program may still do after its process has given everything else up: limits, capabilities, system calls.

Namespaces and the read-only root are bubblewrap's work; this is done by the child itself, for good, just before it runs
what a model wrote. The process may not start another one or a thread, run a file, open a socket or trace anybody.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct

SHARED_CALLS = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442, 447)
"""io_uring (3), open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, pidfd_getfd, mount_setattr, memfd_secret:
since Linux 5.1 numbers are the same everywhere."""
CLONE3 = 435
FORBIDDEN_CALLS = {
    "x86_64": (
        0xC000003E,  # AUDIT_ARCH_X86_64
        # shmget, socket .. listen, socketpair, clone, fork, vfork, execve, semget, msgget, ptrace, personality,
        # pivot_root, chroot, acct, mount, umount2, swapon, reboot, iopl, ioperm, init_module, delete_module, quotactl,
        # mq_open, kexec_load, add_key, request_key, keyctl, migrate_pages, unshare, move_pages, perf_event_open,
        # fanotify_init, name_to_handle_at, open_by_handle_at, setns, process_vm_readv, process_vm_writev, kcmp,
        # finit_module, memfd_create, kexec_file_load, bpf, execveat, userfaultfd
        (29, *range(41, 51), 53, 56, 57, 58, 59, 64, 68, 101, 135, 155, 161, 163, 165, 166, 167, 169, 172, 173, 175,
         176, 179, 240, 246, 248, 249, 250, 256, 272, 279, 298, 300, 303, 304, 308, 310, 311, 312, 313, 319, 320, 321,
         322, 323),
    ),
    "aarch64": (
        0xC00000B7,  # AUDIT_ARCH_AARCH64
        # The same calls in the order of their numbers there, umount2 to kexec_file_load.
        (39, 40, 41, 51, 60, 89, 92, 97, 104, 105, 106, 117, 142, 180, 186, 190, 194, *range(198, 208), 217, 218, 219,
         220, 221, 224, 238, 239, 241, 262, 264, 265, 268, 270, 271, 272, 273, 279, 280, 281, 282, 294),
    ),
}  # fmt: skip
"""Machine -> its name in the kernel's audit records and the numbers of the calls that get EPERM."""

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_PRIVATE, MS_REC = 2, 4, 8, 1 << 18, 1 << 14
CAPABILITY_VERSION_3 = 0x20080522
LOAD, JUMP_EQUAL, JUMP_ABOVE, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000

libc = ctypes.CDLL(None, use_errno=True)


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def check(result: int, what: str) -> None:
    """Go on only if the C library says so.

    Raises:
        OSError: it does not.
    """
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def filter_code(machine: str) -> bytes:
    """The seccomp filter of this kind of machine, as the kernel's 8-byte instructions.

    Raises:
        OSError: it has no table of system calls here.
    """
    if machine not in FORBIDDEN_CALLS:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}: use one of {sorted(FORBIDDEN_CALLS)}")
    architecture, numbers = FORBIDDEN_CALLS[machine]
    calls = (*numbers, *SHARED_CALLS)
    lines = [
        (LOAD, 0, 0, 4), (JUMP_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0),
        (JUMP_ABOVE, 0, 1, 1 << 30), (RETURN, 0, 0, REFUSE | errno.EPERM),  # x32, whose numbers are others
        (JUMP_EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, REFUSE | errno.ENOSYS),  # the C library then asks clone
    ]  # fmt: skip
    for call in calls:
        lines += [(JUMP_EQUAL, 0, 1, call), (RETURN, 0, 0, REFUSE | errno.EPERM)]
    lines.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def limit(cpu_seconds: int, memory_mb: int, files_mb: int) -> None:
    """Set hard limits; soft ones are the same, so that the kernel kills at once and no signal can be caught."""
    sizes = {
        resource.RLIMIT_CPU: cpu_seconds, resource.RLIMIT_AS: memory_mb << 20, resource.RLIMIT_FSIZE: files_mb << 20,
        resource.RLIMIT_CORE: 0, resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_MSGQUEUE: 0, resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_NPROC: 1, resource.RLIMIT_SIGPENDING: 64, resource.RLIMIT_STACK: 8 << 20,
    }  # fmt: skip
    for name, size in sizes.items():
        resource.setrlimit(name, (size, size))


def fresh_folder(files_mb: int) -> None:
    """An empty /tmp of this process alone, which vanishes with it."""
    os.unshare(os.CLONE_NEWNS | os.CLONE_NEWIPC)
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount private")
    options = f"size={files_mb}m,nr_inodes=256,mode=700".encode()
    check(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options), "mount /tmp")
    os.chdir("/tmp")  # noqa: S108


def drop_everything() -> None:
    """Give up all capabilities and the system calls of FORBIDDEN_CALLS, for good."""
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    header = struct.pack("<Ii", CAPABILITY_VERSION_3, 0)
    check(libc.capset(header, bytes(24)), "capset")
    check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    code = filter_code(platform.machine())
    program = _Filter(len(code) // 8, code)
    check(libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0), "seccomp")
