# Two processes that share their text.
def parents():
    """a breakpoint belongs to the process that it was set in; its child passes it unseen"""
    run("break main")
    run("continue")
    run("delete")
    run("break hit")
    told = []
    for _ in range(6):
        run("continue")
        told.append((value("$task_id"), value("who")))
    equal(told, [(1, 0)] + [(1, 1)] * 5, "all of the parent's, none of the child's")


main(parents, to_the_end)
