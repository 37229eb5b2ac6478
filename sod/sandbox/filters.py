"""The two seccomp programs: one for everything inside the sandbox, a far narrower one for the user's code.

Both are made once on the host with libseccomp and handed in as finished BPF, so that nothing inside the
sandbox needs the library.
"""

from __future__ import annotations

import errno
import os
import struct
from functools import cache

import pyseccomp

# Stands for the pid of the confined process, which is known only inside.
_PID_PLACEHOLDER = 0x5EC0DE5

_CLONE_THREAD = 0x00010000
# NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_CLONE_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_AF_UNIX = 1
_SOCK_STREAM = 1
_SOCK_TYPE_MASK = 0xF
# DUPFD, GETFD, SETFD, GETFL, SETFL, record locks, open-file-description locks, DUPFD_CLOEXEC, GETPIPE_SZ.
# SETOWN and SETSIG are left out: they make the kernel signal other processes.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# SET_NAME, GET_NAME and SET_VMA (glibc names its arenas with it).
_PRCTL_OPTIONS = (15, 16, 0x53564D41)

_NEVER_INSIDE = """
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd
    mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr
    unshare setns bpf add_key keyctl request_key io_uring_setup io_uring_enter io_uring_register
    perf_event_open userfaultfd name_to_handle_at open_by_handle_at init_module finit_module delete_module
    kexec_load kexec_file_load reboot swapon swapoff acct quotactl syslog settimeofday clock_settime adjtimex
    clock_adjtime sethostname setdomainname iopl ioperm personality lookup_dcookie nfsservctl vhangup
    shmget shmat shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink
    socket connect bind listen accept accept4 mbind migrate_pages move_pages set_mempolicy fanotify_init
"""

_NEVER_IN_CODE = """
    fork vfork execve execveat sendmsg recvmsg sendmmsg recvmmsg tkill rt_sigqueueinfo rt_tgsigqueueinfo
    pidfd_open pidfd_send_signal memfd_create setuid setgid setreuid setregid setresuid setresgid setgroups
    setfsuid setfsgid capset setsid setpgid setpriority sched_setscheduler sched_setattr sched_setparam
    ioprio_set chown fchown lchown fchownat mknod mknodat mlockall seccomp
"""

_NO_XATTR = """
    setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
    removexattr lremovexattr fremovexattr
"""

_ALLOWED_IN_CODE = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 open openat openat2 creat close
    close_range lseek stat fstat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd
    chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
    chmod fchmod fchmodat fchmodat2 truncate ftruncate fallocate fsync fdatasync utime utimes utimensat
    futimesat umask getdents getdents64 dup dup2 dup3 pipe pipe2 flock sendfile copy_file_range splice tee
    fadvise64 readahead statfs fstatfs
    mmap munmap mremap mprotect madvise brk mincore msync mlock munlock membarrier
    exit exit_group futex futex_waitv futex_wake futex_wait futex_requeue set_robust_list get_robust_list
    rseq set_tid_address gettid getpid getppid getpgid getpgrp getsid getuid geteuid getgid getegid getresuid
    getresgid getgroups capget wait4 waitid sched_yield sched_getaffinity sched_getparam sched_getscheduler
    sched_getattr sched_get_priority_max sched_get_priority_min sched_rr_get_interval getpriority getrusage
    getrlimit setrlimit getcpu arch_prctl
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause
    alarm setitimer getitimer restart_syscall signalfd signalfd4
    nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times timerfd_create
    timerfd_settime timerfd_gettime
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_pwait
    epoll_pwait2 eventfd eventfd2
    recvfrom getsockname getpeername getsockopt shutdown uname sysinfo getrandom
"""


def _add(program: pyseccomp.SyscallFilter, action: int, names: str, *conditions: pyseccomp.Arg) -> None:
    """Add one rule per name that this machine and libseccomp know; others fall to the default action."""
    for name in names.split():
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        if number >= 0:
            program.add_rule(action, number, *conditions)


def _export(program: pyseccomp.SyscallFilter) -> bytes:
    """Return the BPF instructions of a filter."""
    # A foreign system-call table (32-bit, x32) would walk around every rule below.
    program.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    fd = os.memfd_create("seccomp")
    with os.fdopen(fd, "w+b") as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


@cache
def base_filter() -> bytes:
    """Return the program that bubblewrap installs before anything of ours runs inside.

    It allows what the fork server needs (fork, changing uid, signals) and denies what nobody inside needs.

    Returns:
        BPF instructions, 8 bytes each.
    """
    program = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    deny = pyseccomp.ERRNO(errno.EPERM)
    _add(program, deny, _NEVER_INSIDE)
    bit = 1
    while bit <= _CLONE_NAMESPACES:
        if bit & _CLONE_NAMESPACES:
            _add(program, deny, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, bit, bit))
        bit <<= 1
    # clone3 keeps its flags in memory, where a filter cannot look; glibc falls back to clone.
    _add(program, pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    return _export(program)


@cache
def code_filter() -> bytes:
    """Return the program for the user's code: a list of what is allowed, all else fails.

    Threads, files below the working directory, timers and polling work. Processes, sockets (but for a
    connected stream pair, which asyncio needs), other processes' signals and limits, and objects that outlive
    the process (System V IPC, keys) do not. Unknown and newer system calls answer ENOSYS.

    Returns:
        BPF instructions, 8 bytes each; `pid_offsets` tells where the pid must be written into them.
    """
    program = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
    allow, deny = pyseccomp.ALLOW, pyseccomp.ERRNO(errno.EPERM)
    _add(program, allow, _ALLOWED_IN_CODE)
    _add(program, deny, _NEVER_INSIDE)
    _add(program, deny, _NEVER_IN_CODE)
    # shutil.copy2 takes "not supported" for an answer, but not "not permitted".
    _add(program, pyseccomp.ERRNO(errno.ENOTSUP), _NO_XATTR)

    flags = _CLONE_THREAD | _CLONE_NAMESPACES
    _add(program, allow, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flags, _CLONE_THREAD))
    _add(program, deny, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_THREAD, 0))
    for name in ("kill", "tgkill"):
        _add(program, allow, name, pyseccomp.Arg(0, pyseccomp.EQ, _PID_PLACEHOLDER))
        _add(program, deny, name, pyseccomp.Arg(0, pyseccomp.NE, _PID_PLACEHOLDER))
    # Pid 0 is the caller; any other pid could be the fork server.
    for name in ("prlimit64", "sched_setaffinity"):
        _add(program, allow, name, pyseccomp.Arg(0, pyseccomp.EQ, 0))
        _add(program, deny, name, pyseccomp.Arg(0, pyseccomp.NE, 0))
    for name, argument, values in (
        ("fcntl", 1, _FCNTL_COMMANDS),
        ("ioctl", 1, _IOCTL_REQUESTS),
        ("prctl", 0, _PRCTL_OPTIONS),
    ):
        for value in values:
            _add(program, allow, name, pyseccomp.Arg(argument, pyseccomp.EQ, value))
    _add(
        program,
        allow,
        "socketpair",
        pyseccomp.Arg(0, pyseccomp.EQ, _AF_UNIX),
        pyseccomp.Arg(1, pyseccomp.MASKED_EQ, _SOCK_TYPE_MASK, _SOCK_STREAM),
    )
    # Without an address a message can only go to the other end of such a pair.
    _add(program, allow, "sendto", pyseccomp.Arg(4, pyseccomp.EQ, 0))
    return _export(program)


def pid_offsets(program: bytes) -> tuple[int, ...]:
    """Return the byte offsets at which a program from `code_filter` wants the pid, as a native 32-bit word.

    Args:
        program: BPF instructions.

    Returns:
        Offsets in bytes; never empty for `code_filter()`.
    """
    offsets = range(4, len(program), 8)
    return tuple(at for at in offsets if struct.unpack_from("=I", program, at)[0] == _PID_PLACEHOLDER)
