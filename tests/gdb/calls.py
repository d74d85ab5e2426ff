# What gdb makes of steps: into, over and out of calls and recursions.
def into():
    """step goes into a function, finish comes back with its value"""
    run("break outer")
    run("continue")
    equal(value("n"), 5, "the argument")
    run("step")
    run("step")
    equal(name(), "sum_to", "step goes into")
    run("finish")
    equal((name(), value("$")), ("outer", 15), "finish, and what was returned")
    line = gdb.newest_frame().find_sal().line
    run("next")
    run("next")
    equal((name(), gdb.newest_frame().find_sal().line > line), ("outer", True), "next goes over fib")


def again():
    """to the second call of the same"""
    run("delete")
    run("break outer")
    run("continue")
    equal(value("n"), 6, "the argument")


def recursion():
    """a breakpoint deep in a recursion; its frames; finish of the outermost one"""
    run("delete")
    run("break fib if n == 1")
    run("continue")
    equal((name(), value("n")), ("fib", 1), "in the recursion")
    frame, depth = gdb.newest_frame(), 0
    while frame is not None and frame.name() == "fib":
        frame, depth = frame.older(), depth + 1
    equal(depth, 6, "six of them")
    run("delete")
    run("frame 5")
    run("finish")
    equal((name(), value("$")), ("outer", 8), "what the outermost one returned, and where")


def many():
    """many instructions in one command"""
    run("tbreak printf")
    run("continue")
    check((name() or "").endswith("printf"), "there: %s" % name())
    run("stepi 50")
    equal(value("$task_id"), 1, "fifty more instructions")


main(into, again, recursion, many, to_the_end)
