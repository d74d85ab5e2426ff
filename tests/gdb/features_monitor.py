# What only the machine can tell or do: `monitor`.
def monitor(line):
    return run("monitor " + line)


def telling():
    run("break work")
    run("continue")
    known = monitor("help")
    for line in ["runqueues", "symbols", "maps", "tsc", "suspend", "requests"]:
        check(line in known, "help knows %s" % line)
    check("CPU 0: runs" in monitor("runqueues"), "run queues by CPU")
    text = monitor("symbols")
    check("add-symbol-file target:" in text and os.environ["TASKVISOR_PROGRAM"] in text, "symbols by file")
    # The program's text runs and isn't written, its stack is written and doesn't run.
    text = monitor("maps")
    rights = lambda address: [
        line.split()[1] for line in text.splitlines() if line.startswith("0x") and inside(address, line.split()[0])
    ]
    equal((rights(value("$pc")), rights(value("$sp"))), (["r-x"], ["rw-"]), "what is mapped")
    check("vCPU 0: " in monitor("tsc"), "time-stamp counters")
    check("no number" in monitor("suspend x") and "suspend TASK" in monitor("suspend"), "what is wrong is explained")


def inside(address, span):
    start, end = span.split("-")
    return int(start, 16) <= address < int(end, 16)


def answered(line):
    """The guest answers while it runs, which may take some rounds."""
    for _ in range(40):
        if line in monitor("requests"):
            return
        run("continue")
    check(False, line)


def a_task_is_held():
    waiting = blocked()
    monitor("suspend %d" % waiting.ptid[1])
    check("waits until" in monitor("requests"), "it waits until the guest goes on")
    answered("suspend %d: done" % waiting.ptid[1])
    monitor("affinity %d 0" % waiting.ptid[1])
    monitor("resume %d" % waiting.ptid[1])
    monitor("suspend 99999")
    answered("affinity %d 0: done" % waiting.ptid[1])
    answered("resume %d: done" % waiting.ptid[1])
    answered("suspend 99999: the guest has no such task")


main(telling, a_task_is_held, to_the_end)
