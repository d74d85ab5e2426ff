# Breakpoints of every kind in a program with four threads that call the same function at the same time.
import os

N, M = 4, int(os.environ["TASKVISOR_ROUNDS"])


def before_boot():
    """set before the guest has begun, they are met"""
    equal(len(threads()) >= 1 and threads()[0].ptid[1], 1, "thread 1 is there before any task is")
    run("break main")
    run("continue")
    equal((name(), value("$task_id")), ("main", 1), "main, by the program's first task")
    run("delete")


def temporary():
    """a temporary one goes after its hit"""
    run("tbreak hit")
    run("continue")
    equal(name(), "hit", "it was hit")
    check("No breakpoints" in run("info breakpoints"), "and is gone")


def memory_is_the_programs_own():
    """no int3 is read where a breakpoint is set"""
    run("break hit")
    address = value("(long)hit")
    check(bytes(gdb.selected_inferior().read_memory(address, 1)) != b"\xcc", "the program's own byte")
    check("int3" not in run("disassemble hit"), "no int3 in the disassembly")


def simultaneous():
    """all of the threads' hits are told, each with its own thread"""
    told = {}
    run("delete")
    run("break hit")
    # One was told by the temporary breakpoint.
    first = (value("$task_id"), value("who"))
    told[first] = 1
    for _ in range(N * M - 1 - N):
        run("continue")
        key = (value("$task_id"), value("who"))
        told[key] = told.get(key, 0) + 1
        equal(key[0], gdb.selected_thread().ptid[1], "the thread that is told is the one that is there")
    check(len(told) <= N, "a thread hits as itself only: %r" % told)
    check(sum(told.values()) == N * M - N, "no hit was lost: %r" % told)
    run("delete")


def ignored_and_disabled():
    """ignore counts, and what is disabled isn't met"""
    before = value("total")
    run("break hit")
    run("ignore $bpnum 1")
    run("continue")
    check(value("total") > before, "one was ignored: %d then %d" % (before, value("total")))
    run("disable")
    run("break printf")
    run("continue")
    equal((name() or "").endswith("printf"), True, "the disabled one was passed")
    equal(value("total"), N * M, "every call was made once: none lost, none twice")


main(before_boot, temporary, memory_is_the_programs_own, simultaneous, ignored_and_disabled, to_the_end)
