# Every command of resources/gdb/taskvisor.py.
def lists():
    run("source " + os.environ["TASKVISOR_COMMANDS"])
    run("break work")
    run("continue")
    run("delete")
    text = run("task-list")
    check("waits: futex" in text and "running" in text and "idle/0" in text, "task-list: who waits, who runs")
    text = run("task-runqueue")
    check("CPU 0: runs" in text and "CPU 1: runs" in text, "task-runqueue: each CPU")
    text = run("task-vmas")
    check("r-x" in text and "rw-" in text, "task-vmas: text and stack")
    waiters = run("task-waiters")
    check("blocked on futex" in waiters and "running" not in waiters, "task-waiters: those alone")


def where():
    text = run("task-where")
    check("work" in text and "target.c" in text, "task-where: the program's place")
    waiter = text.split('blocked on futex', 1)[1].splitlines()[1:3]
    check(waiter[0].startswith("    0xffffffff"), "a thread that waits is in the kernel")
    check(waiter[1].startswith("    0x4") and "??" not in waiter[1], "and its program's place is told too")
    equal(value("$task_id"), 1, "and the thread that was selected still is")


def only_one():
    before = value("counter")
    run("task-only 1 work")
    run("continue")
    equal((name(), value("$task_id"), value("counter")), ("work", 1, before + 1), "task-only stops for its task")
    run("delete")
    run("task-only 9999 work")
    refused("task-only work", "task-only TASK LOCATION")


main(lists, where, only_one, to_the_end)
