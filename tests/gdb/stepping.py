# Steps stay with their thread and leave nothing behind.
def body():
    run("break work")
    run("continue")
    run("delete")
    start = value("$pc")
    for n in range(30):
        before = value("$pc")
        run("stepi")
        check(value("$pc") != before, "step %d moves" % n)
        equal(value("$task_id"), 1, "step %d stays with its task" % n)
    check(start <= value("$pc") < start + 0x80, "the loop is where it was")
    check(value("$eflags") & 0x100 == 0, "no trap flag is left behind")
    run("finish")
    equal(gdb.newest_frame().name(), "main", "finish comes back to the caller")
    run("tbreak work")
    run("continue")
    line = gdb.newest_frame().find_sal().line
    run("next")
    check(gdb.newest_frame().find_sal().line > line, "next goes to the next line")
    run("set scheduler-locking on")
    run("stepi")
    equal(value("$task_id"), 1, "a step with the others locked")
    run("set scheduler-locking off")
    run("tbreak pthread_join")
    run("continue")
    run("stepi 200")
    equal(value("$task_id"), 1, "steps through system calls")
    run("continue")


main(body)
