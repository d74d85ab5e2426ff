# A program that handles its faults.
def first():
    """a fault stops at its instruction"""
    run("continue")
    equal(signals[-1:], ["SIGSEGV"], "how it is told")
    equal((name(), value("faults")), ("main", 0), "before the program knows")


def then():
    """going on delivers it"""
    run("continue")
    equal(value("faults"), 1, "one was handled")


def off():
    """with stop-on-fault off the program has them for itself"""
    run("monitor stop-on-fault off")
    run("continue")
    equal(ended, [7], "its end, with no stop between")


main(first, then, off)
