# What a stopped guest shows: tasks as threads, registers, memory.
import re


def waited():
    """For how many microseconds the thread that waits for the lock has done so, as the list says."""
    found = re.search(r"blocked on futex for ([0-9.]+) (us|ms|s),", run("info threads"))
    check(found is not None, "since when it waits")
    return float(found[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[found[2]] if found else 0


def body():
    equal(gdb.selected_thread().num, 1, "the first thread is there before the guest has begun")
    run("break work")
    run("continue")
    other = blocked()
    text = run("info threads")
    check('"target" (user task, running on vCPU' in text, "the thread that computes")
    check("blocked on futex" in text, "the thread that waits")
    check("idle task" in text, "an idle task")
    since = waited()
    run("continue")
    check(waited() > since > 0, "it has waited longer when the other has worked")
    check("waits: futex for " in run("monitor tasks"), "and so says monitor tasks")
    equal(gdb.selected_thread().num, 1, "thread 1 is the program's first task")
    equal((value("$task_id"), value("$mode")), (1, 3), "its number, and that it is in its program")
    check(value("$cr3") != 0 and value("$fs_base") != 0, "system registers")
    equal(gdb.newest_frame().older().name(), "main", "who called")
    rounds = value("counter")
    main_root = value("$cr3")
    other.switch()
    equal(value("$mode"), 0, "a thread that waits is in the kernel")
    check("<unavailable>" in run("p $rax"), "what the switch doesn't save is not there")
    check(value("$cr3") != main_root, "each task has its own page table")
    equal(value("counter"), rounds, "the same memory through it")
    run("set var counter = 100000")
    run("thread 1")
    equal(value("counter"), 100000, "what was written through one is read through the other")
    run("set var counter = %d" % rounds)
    run("set var $rdi = 1000")
    check("tasks" in run("monitor help") and "target" in run("monitor tasks"), "monitor tasks")
    check("CPU 0: task" in run("monitor cpus"), "monitor cpus")
    check("is guest-physical" in run("monitor translate 0x%x" % value("(long) &counter")), "monitor translate")
    check("not mapped" in run("monitor translate 0x10"), "what isn't mapped")
    run("delete")
    run("continue")


main(body)
