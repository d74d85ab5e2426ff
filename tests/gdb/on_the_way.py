# Breakpoints that aren't meant, in the program and in the kernel on the program's way over its own.
def program():
    """the program is there, and its symbols beside the kernel's"""
    run("add-symbol-file " + os.environ["TASKVISOR_PROGRAM"])
    run("break main")
    run("continue")
    equal(name(), "main", "the program runs")
    run("delete")


def both():
    """a step over one leads over the other"""
    run("break hit if $task_id == 99")
    run("break trap_from_user if $task_id == 99")
    run("continue")
    equal(ended, [7], "the program's end is told with its exit code")


main(program, both)
