# Watched memory: who writes it is stopped, behind the instruction that did, and nobody else.
stops = []
gdb.events.stop.connect(lambda event: stops.append(event))


def kinds():
    """What the last stop was for."""
    return [breakpoint.type for breakpoint in getattr(stops[-1], "breakpoints", [])]


def a_variable():
    run("break work")
    run("continue")
    run("delete")
    before = value("counter")
    check("Hardware watchpoint" in run("watch counter"), "the machine watches, not the client")
    for n in range(2):
        run("continue")
        equal(kinds(), [gdb.BP_HARDWARE_WATCHPOINT], "write %d stops" % n)
        equal(value("counter"), before + n + 1, "and it is the next")
        equal((name(), value("$task_id")), ("work", 1), "it was work that wrote")
    check(value("$eflags") & 0x100 == 0, "no trap flag is left behind")


def beside_breakpoints():
    run("break work")
    before = value("counter")
    run("continue")
    equal((kinds(), value("counter")), ([gdb.BP_BREAKPOINT], before), "a breakpoint is hit, too")
    run("continue")
    equal((kinds(), value("counter")), ([gdb.BP_HARDWARE_WATCHPOINT], before + 1), "and then the write")
    run("delete")


def on_a_condition():
    wanted = value("counter") + 2
    run("watch counter if counter == %d" % wanted)
    run("continue")
    equal(value("counter"), wanted, "the condition held")
    run("delete")


def while_stepping():
    run("tbreak work")
    run("continue")
    run("watch counter")
    run("finish")
    equal((kinds(), name()), ([gdb.BP_HARDWARE_WATCHPOINT], "work"), "finish is interrupted by the write")
    run("delete")


def too_much():
    run("watch *(char (*)[100])&counter")
    refused("continue", "Command aborted")
    run("delete")


main(a_variable, beside_breakpoints, on_a_condition, while_stepping, too_much, to_the_end)
