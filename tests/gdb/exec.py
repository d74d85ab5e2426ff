# A breakpoint that was set before there was a process is for any.
def anyones():
    """it is met in the child after its exec, and in the parent"""
    run("break hit")
    told = []
    for _ in range(5):
        run("continue")
        told.append((value("$task_id"), value("who")))
    equal(len({task for task, _ in told}), 2, "two tasks: the child's thread and the parent: %r" % told)
    equal(told[4][0], 1, "the parent at last")


main(anyones, to_the_end)
