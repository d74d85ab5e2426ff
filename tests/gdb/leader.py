# The first thread ends; the session goes on.
def leaves():
    """thread 1 is still there when the program's first thread isn't"""
    run("break hit")
    for n in range(3):
        run("continue")
        equal((name(), value("hits[0]")), ("hit", n), "the other thread")
        check(any(thread.ptid[1] == 1 for thread in threads()), "there is a thread 1")
        check(value("$task_id") != 1, "which isn't this one")


main(leaves, to_the_end)
