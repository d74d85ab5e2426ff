# Conditions, in many threads.
def task():
    """a condition on the task stops that task only"""
    run("break main")
    run("continue")
    run("delete")
    run("break hit if $task_id == 3")
    for _ in range(2):
        run("continue")
        equal((name(), value("$task_id")), ("hit", 3), "the task that was meant")
    check("already hit 2 times" in run("info breakpoints"), "the others' hits never came to gdb")
    run("delete")


def memory_and_registers():
    """a condition reads arguments, memory and control registers"""
    run("break hit if who == 2 && hits[who] >= 3")
    run("continue")
    check(value("who") == 2 and value("hits[2]") >= 3, "argument and memory")
    root = value("$cr3")
    run("delete")
    run("break hit if $cr3 == %d" % root)
    run("continue")
    equal(value("$cr3"), root, "the page table that was meant: a task of its own")
    equal(value("who"), 2, "and so the same task")
    run("delete")


def bad_memory():
    """a condition that reads what isn't there stops, as gdb does it"""
    run("break hit if *(long *)8 == 1")
    try:
        run("continue")
    except gdb.error as error:
        check("Cannot access memory" in str(error), "gdb says why: %s" % error)
    equal(name(), "hit", "it stands there")
    run("delete")


def two_conditions():
    """two breakpoints at one address: each with its own condition"""
    run("break hit if who == 2")
    run("break hit if who == 0")
    seen = set()
    for _ in range(8):
        run("continue")
        seen.add(value("who"))
    check(seen <= {0, 2} and seen, "only what one of them wants: %r" % seen)
    run("delete")


def of_a_thread():
    """a breakpoint of one thread: gdb filters, nothing is lost"""
    task = value("$task_id")
    run("break hit thread %d" % gdb.selected_thread().num)
    for _ in range(2):
        run("continue")
        equal(value("$task_id"), task, "the thread that was meant")
    run("delete")


def with_commands():
    """a breakpoint's commands run"""
    run("tbreak hit")
    gdb.breakpoints()[-1].commands = "silent\nset var message[0] = 'C'\n"
    run("continue")
    equal(name(), "hit", "stopped")
    run("delete")


main(task, of_a_thread, memory_and_registers, bad_memory, two_conditions, with_commands, to_the_end)
