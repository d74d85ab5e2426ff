# Two threads that compute without end: Ctrl-C, steps while the others run or don't, a change that ends them.
import os

CPUS = int(os.environ["TASKVISOR_VCPUS"])


def ctrl_c():
    """Ctrl-C stops what computes, again and again"""
    run("break marker")
    run("continue")
    run("delete")
    for n in range(3):
        before = [value("turns[0]"), value("turns[1]")]
        interrupted_continue()
        equal(signals[-1:], ["SIGINT"], "how it is told")
    check(value("turns[0]") + value("turns[1]") > sum(before), "the guest ran between")


def spinner():
    for thread in threads():
        thread.switch()
        if gdb.newest_frame().name() == "spinner" and value("$mode") == 3:
            return thread
    return None


def running_spinner():
    for _ in range(20):
        thread = spinner()
        if thread is not None:
            return thread
        interrupted_continue()
    raise RuntimeError("no spinner runs")


def locked():
    """with the scheduler locked a step stays with its thread"""
    running_spinner()
    run("set scheduler-locking on")
    task = value("$task_id")
    for n in range(20):
        at = value("$pc")
        run("stepi")
        equal(value("$task_id"), task, "the same task")
        check(value("$pc") != at, "it moves")
    run("set scheduler-locking off")


def unlocked():
    """without, the others run, and the step stays with its thread, on however few CPUs"""
    running_spinner()
    task = value("$task_id")
    for n in range(20):
        at = value("$pc")
        run("stepi")
        equal((value("$task_id"), value("$mode")), (task, 3), "the same task, in its program and in no interrupt handler")
        check(value("$pc") != at, "it moves")
    equal(value("$eflags") & 0x100, 0, "no trap flag")


def step_over_breakpoint():
    """gdb's own step over a breakpoint, which names one thread and no default"""
    thread = running_spinner()
    run("break *%d" % value("$pc"))
    for n in range(5):
        run("continue")
        equal(gdb.newest_frame().name(), "spinner", "hit in the loop")
    run("delete")


def core():
    """no thread but those on a vCPU is shown as running"""
    running = [thread for thread in threads() if "running" in (thread.details or "")]
    check(0 < len(running) <= CPUS, "%d of %d vCPUs run something" % (len(running), CPUS))


def changed():
    """a variable is changed, and the program ends for it"""
    run("set var go_on = 0")
    to_the_end()


main(ctrl_c, locked, unlocked, step_over_breakpoint, core, changed)
