# A program's fault stops at the instruction, before the program is told.
def body():
    run("continue")
    equal(gdb.newest_frame().name(), "main", "where it faulted")
    equal(value("nowhere"), 0, "what it used")
    equal(value("$task_id"), 1, "who")
    run("continue")


main(body)
