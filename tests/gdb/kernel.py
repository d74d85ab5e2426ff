# The kernel's own code: its symbols come by themselves; breakpoints, steps, and a backtrace into the program.
def body():
    run("add-symbol-file " + os.environ["TASKVISOR_PROGRAM"])
    run("break work")
    run("continue")
    blocked().switch()
    text = run("bt")
    check("trap_from_user" in text or "syscall_from_user" in text, "the kernel's part")
    check("wait_for_lock" in text, "the program's part")
    run("delete")
    run("break trap_from_user")
    run("continue")
    equal((gdb.newest_frame().name(), value("$mode")), ("trap_from_user", 0), "a breakpoint in the kernel")
    for n in range(10):
        before = value("$pc")
        run("stepi")
        check(value("$pc") != before and value("$mode") == 0, "step %d in the kernel" % n)
    run("continue")
    equal(gdb.newest_frame().name(), "trap_from_user", "and again")
    run("delete")
    run("hbreak trap_from_user")
    run("continue")
    equal(gdb.newest_frame().name(), "trap_from_user", "a hardware breakpoint")
    run("delete")
    run("continue")


main(body)
